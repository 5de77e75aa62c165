"""Which held-out windows a generation takes, and what it keeps when it is continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinesynth.config import GenerateConfig
from cinesynth.data.dataset import WindowRow
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import DatasetError
from cinesynth.generate.driver import seconds_of, window_work
from cinesynth.generate.held_out import window_seed
from cinesynth.generate.messages import VideoRequest
from cinesynth.generate.windows import copy_real, held_out_windows, settle_windows
from cinesynth.pictures import read_picture
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.wan.family import WAN21_I2V

ROW = WindowRow(
    window_id="", source_uri="a.mp4", source_sha256="", shot_id="", group="", start_s=0.0, end_s=1.0, fps=16,
    num_frames=17, height=64, width=96, bucket="96x64x17", caption="a dog, running", domain="film", split="test",
    scores={}, shard="", row=0,
)  # fmt: skip


class Held:
    """The part of a dataset that is read here: windows by split, and their pixels."""

    def __init__(self, folder: Path, groups: str) -> None:
        self.storage = Storage.open(folder)
        self.rows = [replace(ROW, window_id=f"w{i}", group=g, start_s=float(i)) for i, g in enumerate(groups)]
        for row in self.rows:
            self.storage.write_bytes(f"pixels/{row.window_id}.mkv", row.window_id.encode())

    def windows(self, split: str | None) -> list[WindowRow]:
        return [row for row in self.rows if row.split == split]


def settings(most: int | None, split: str = "test") -> GenerateConfig:
    return parse_config(GenerateConfig, {"name": "g", "dataset": "d", "split": split, "max_windows": most})


@pytest.mark.parametrize(
    ("most", "chosen"), [(2, ["w0", "w3"]), (3, ["w0", "w3", "w4"]), (4, ["w0", "w1", "w3", "w4"]), (None, 5)]
)
def test_every_group_has_a_window_before_one_has_a_second(most: int | None, chosen: Any, tmp_path: Path) -> None:
    found = [w.window_id for w in held_out_windows(settings(most), Held(tmp_path, "aaabc"))]
    assert found == chosen or len(found) == chosen


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no window in its val split"):
        held_out_windows(settings(None, "val"), Held(tmp_path, "ab"))


def test_a_run_that_continues_keeps_its_windows(tmp_path: Path) -> None:
    """Also one that an earlier version began, which took the first windows whatever their group."""
    dataset, run = Held(tmp_path / "dataset", "aaabc"), Storage.open(tmp_path / "run")
    run.write_text("groups.csv", 'video,group,caption\nw0,a,"a dog, running"\nw1,a,x\n')
    windows = settle_windows(run, settings(2), dataset)
    assert [w.window_id for w in windows] == ["w0", "w1"]
    copy_real(run, dataset, windows)
    assert run.list("videos/real") == ["videos/real/w0.mkv", "videos/real/w1.mkv"]


def test_real_videos_of_a_run_that_was_killed_before_it_wrote_its_groups_are_replaced(tmp_path: Path) -> None:
    dataset, run = Held(tmp_path / "dataset", "aab"), Storage.open(tmp_path / "run")
    for name in ("w0", "w1"):
        run.write_bytes(f"videos/real/{name}.mkv", b"x")
    windows = settle_windows(run, settings(2), dataset)
    copy_real(run, dataset, windows)
    assert run.list("videos/real") == ["videos/real/w0.mkv", "videos/real/w2.mkv"]
    assert run.read_text("groups.csv") == 'video,group,caption\nw0,a,"a dog, running"\nw2,b,"a dog, running"\n'
    assert settle_windows(run, settings(2), dataset) == windows


def test_seconds_of_loading_and_of_videos_are_apart() -> None:
    made = [(0, 10.0, 1.0), (0, 10.0, 3.0), (1, 20.0, 2.0)]
    rows = [{"group": g, "load_seconds": load, "seconds": {"denoise": s, "decode": 0.5}} for g, load, s in made]
    assert seconds_of(rows) == {
        "load_seconds": 15.0,
        "video_seconds": 2.5,
        "seconds/denoise": 2.0,
        "seconds/decode": 0.5,
    }
    assert seconds_of([]) == {}


class StillGroup:
    """A group that repeats the image that it is given."""

    def __init__(self) -> None:
        self.asked: list[VideoRequest] = []

    def start(self, request: VideoRequest) -> None:
        self.asked.append(request)
        if request.image is not None:
            frames = np.repeat(np.asarray(read_picture(request.image))[None], request.num_frames, 0)
            path = Path(Storage(*request.output).path) / request.file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames, 16, "ffv1")

    def result(self) -> dict[str, Any]:
        return {"seconds": {"denoise": 1.0}, "sha256": "", "provenance": {}}


def test_a_window_longer_than_a_segment_is_made_of_its_first_frame(tmp_path: Path) -> None:
    held, output, group = Held(tmp_path / "data", "a"), Storage.open(tmp_path / "run"), StillGroup()
    row = replace(held.rows[0], num_frames=25, height=32, width=48)
    real = np.random.default_rng(0).integers(0, 256, (25, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "data" / "pixels" / "w0.mkv", real, 16, "ffv1")
    config = parse_config(
        GenerateConfig,
        {"name": "g", "dataset": "d", "split": "test", "expansion": {"segment_frames": 17, "overlap": 0}},
    )
    common = {"storage": held.storage.reference(), "output": output.reference(), "file": "videos/base/w0.mkv"}
    common |= {"sampler": config.sampler, "state": None}

    told = window_work(config, common, held, row, WAN21_I2V)(group)  # type: ignore[arg-type]
    assert [(r.num_frames, r.prompt, r.window) for r in group.asked] == [(n, row.caption, None) for n in (17, 9)]
    assert group.asked[0].sampler.seed == window_seed(0, "w0")
    assert told["provenance"]["segments"] == [[0, 17], [16, 9]]
    made, _ = read_video(tmp_path / "run" / "videos" / "base" / "w0.mkv")
    assert np.array_equal(made, np.repeat(real[:1], 25, 0))  # lossless, as the real ones are

    short = replace(row, num_frames=17)
    window_work(config, common, held, short, WAN21_I2V)(group)  # type: ignore[arg-type]
    assert group.asked[-1].window == (held.storage.reference(), "test", "w0")
