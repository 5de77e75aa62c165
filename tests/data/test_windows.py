"""Windows: resampling, cuts, names, splits; and how many the nano configuration holds out."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml

from cinesynth.config import PrepareConfig, SplitSettings, WindowSettings
from cinesynth.data.footage import PyAVDecoder, find_sources
from cinesynth.data.photographs import HELD_OUT
from cinesynth.data.scripted import write_scripted_clips
from cinesynth.data.shots import ShotSpan
from cinesynth.data.video import write_video
from cinesynth.data.windows import Source, Window, assign_split, index_source, window_spans
from cinesynth.settings import parse_config
from cinesynth.storage import sha256_file
from tests.data.clips import write_levels

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def _config(*footage: Path, **overrides: object) -> PrepareConfig:
    window = {"num_frames": 5, "height": 32, "width": 32, "stride": 5}
    values = {"name": "t", "footage": [{"path": str(p)} for p in footage], "window": window, **overrides}
    return parse_config(PrepareConfig, values)


def _index(path: Path, config: PrepareConfig) -> tuple[list[Window], list[str]]:
    windows, rejects = index_source(Source(str(path), sha256_file(path), "default", None), config, PyAVDecoder())
    return windows, [reject.reason for reject in rejects]


def _settings(frames: int = 5, stride: int = 5, limit: int | None = None) -> WindowSettings:
    return WindowSettings(num_frames=frames, height=32, width=32, stride=stride, max_per_shot=limit)


def test_24_fps_is_resampled_to_16_by_holding_frames() -> None:
    shot = ShotSpan(0, 24, tuple(range(24)))  # one second, one tick a frame
    # Sample i shows frame floor(1.5 i): the frame that is on the screen at i / 16 s.
    expected = [tuple(int(1.5 * i) for i in range(k, k + 5)) for k in (0, 5, 10)]
    assert window_spans(shot, Fraction(1, 24), _settings()) == expected


def test_timestamps_rounded_to_milliseconds_lose_no_frame() -> None:
    pts = tuple(round(1000 * i / 16) for i in range(33))  # a 16 fps Matroska file: 62.5 ms becomes 62 or 63
    spans = window_spans(ShotSpan(0, 2062, pts), Fraction(1, 1000), _settings(frames=33, stride=33))
    assert spans == [pts]


def test_a_variable_rate_keeps_its_timing() -> None:
    # Frames at 0, 100, then a pause until 400 ms; samples at 0, 62.5, 125, 187.5, 250, 312.5, 375, 437.5, 500 ms.
    shot = ShotSpan(1000, 1600, (1000, 1100, 1400))
    assert window_spans(shot, Fraction(1, 1000), _settings(frames=9)) == [
        (1000, 1000, 1100, 1100, 1100, 1100, 1100, 1400, 1400)
    ]


def test_windows_end_before_the_next_shot_and_respect_the_limit() -> None:
    shot = ShotSpan(100, 148, tuple(range(100, 148)))
    assert len(window_spans(shot, Fraction(1, 24), _settings())) == 6  # 32 samples
    assert len(window_spans(shot, Fraction(1, 24), _settings(limit=2))) == 2
    assert window_spans(ShotSpan(0, 4, (0, 1, 2, 3)), Fraction(1, 24), _settings()) == []


def test_no_window_crosses_a_cut_and_short_shots_are_reported(tmp_path: Path) -> None:
    """Brightness jumps between shots of 30, 6 and 24 frames at 24 fps; the middle one is shorter than a window."""
    levels = [
        np.full((48, 64, 3), value, np.uint8) for value, count in ((20, 30), (230, 6), (90, 24)) for _ in range(count)
    ]
    path = write_video(tmp_path / "cut.mkv", np.stack(levels), fps=24, codec="ffv1")
    config = _config(path, window={"num_frames": 9, "height": 32, "width": 32, "stride": 3}, shots={"min_frames": 2})
    windows, reasons = _index(path, config)
    assert reasons == ["shot_too_short"]
    assert len({w.shot_id for w in windows}) == 2
    for window in windows:
        frames = PyAVDecoder().read(str(path), window.frame_pts)
        assert len(np.unique(frames)) == 1, "frames of one shot have one brightness"


def test_names_depend_on_content_and_span_alone(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(path, tmp_path / "elsewhere" / "other-name.mkv"))
    config = _config(path, shots={"detector": "none"})
    ids = [w.window_id for w in _index(path, config)[0]]
    assert ids == [w.window_id for w in _index(moved, config)[0]]
    assert len(set(ids)) == len(ids) == 6
    larger = _config(path, shots={"detector": "none"}, window={**config.window.model_dump(), "width": 48})
    assert not set(ids) & {w.window_id for w in _index(path, larger)[0]}


def test_an_unreadable_file_or_sidecar_is_one_reject(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    assert _index(broken, _config(broken)) == ([], ["unreadable"])
    good = write_levels(tmp_path / "good.mkv", range(0, 2000, 40))
    good.with_suffix(".json").write_text("{")
    assert _index(good, _config(good)) == ([], ["unreadable"])


def test_groups_are_sources_shots_or_what_the_sidecar_says(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))
    whole = {"shots": {"detector": "none"}}
    by_source = _index(path, _config(path, **whole))[0]
    assert {w.group for w in by_source} == {sha256_file(path)[:16]}
    by_shot = _index(path, _config(path, group_by="shot", **whole))[0]
    assert {w.group for w in by_shot} == {w.shot_id for w in by_shot}
    path.with_suffix(".json").write_text('{"group": "scene 12"}')
    assert {w.group for w in _index(path, _config(path, **whole))[0]} == {"scene 12"}


def test_splits_are_stable_disjoint_and_near_their_shares() -> None:
    settings = SplitSettings(val=0.1, test=0.2, salt="s")
    groups = [f"group-{i}" for i in range(4000)]
    splits = [assign_split(group, "film", settings) for group in groups]
    shares = {name: splits.count(name) / len(splits) for name in ("train", "val", "test")}
    # Binomial: three standard deviations of 4000 draws.
    assert shares["test"] == pytest.approx(0.2, abs=0.019)
    assert shares["val"] == pytest.approx(0.1, abs=0.0143)
    # A function of the group alone: growing the test share moves groups into it, never out of it.
    more = SplitSettings(val=0.1, test=0.4, salt="s")
    assert all(assign_split(g, "film", more) == "test" for g, s in zip(groups, splits, strict=True) if s == "test")
    assert splits != [assign_split(group, "street", settings) for group in groups]
    # Golden values: datasets that exist must not be divided anew by a later version.
    assert [assign_split(f"group-{i}", "film", settings) for i in range(12)] == GOLDEN_SPLITS


GOLDEN_SPLITS = ["train", "val", "train", "train", "train", "val", "train", "test", "test", "train", "train", "train"]


@pytest.mark.parametrize(("name", "train"), [("prepare", 100), ("pipeline", 70)])
def test_the_nano_configuration_holds_out_16_groups_and_48_windows(name: str, train: int, tmp_path: Path) -> None:
    values = yaml.safe_load((CONFIGS / "nano" / f"{name}.yaml").read_text())
    demo = name == "pipeline"
    values = {**values["prepare"], "name": "t"} if demo else values
    # Smaller than the demo's: times and groups do not depend on the size.
    photographs = HELD_OUT if demo else ()
    write_scripted_clips(tmp_path, 54, seed=0, height=48, width=72, photographs=photographs, film_look=demo)
    values["footage"][0]["path"] = str(tmp_path)
    config = parse_config(PrepareConfig, values)
    config.check_inputs()
    windows: list[Window] = []
    for path, index in find_sources(config.footage):
        source = Source(str(path), sha256_file(path), config.footage[index].domain, config.footage[index].caption)
        windows += index_source(source, config, PyAVDecoder())[0]
    test = [w for w in windows if w.split == "test"]
    assert len({w.group for w in test}) >= 16
    assert len(test) >= 48
    assert sum(w.split == "train" for w in windows) >= train
    assert {w.split for w in windows} == {"train", "val", "test"}
    held_out = {w.group for w in windows if w.split != "train"}
    assert not held_out & {w.group for w in windows if w.split == "train"}


def test_shipped_configurations_parse() -> None:
    for path in CONFIGS.glob("*/prepare.yaml"):
        parse_config(PrepareConfig, yaml.safe_load(path.read_text()), where=str(path))
