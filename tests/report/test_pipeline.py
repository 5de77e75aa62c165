"""The pipeline's page: self-contained, small, escaped, complete, and frank about what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest

from cinesynth.data.video import read_video
from cinesynth.metrics.record import Comparison, Value
from cinesynth.report.page import MAX_BYTES, number
from cinesynth.report.pipeline import write_report
from cinesynth.runs import Run
from tests.report import pipeline_folder
from tests.report.loading import fetched
from tests.report.pipeline_folder import HOSTILE, Window

LOADING = {"src", "href", "poster", "srcset", "data", "action", "xlink:href"}


class Page(HTMLParser):
    """Tags, the addresses that they load, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in LOADING]

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self._text))


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    return pipeline_folder.make_windows()


@pytest.fixture(scope="module")
def held_out(windows: list[Window]) -> list[Window]:
    return [w for w in windows if w.row["split"] == "test"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, windows: list[Window], held_out: list[Window]) -> Path:
    """The run folder of a reported pipeline."""
    config = pipeline_folder.pipeline_config(tmp_path_factory.mktemp("report"))
    run = pipeline_folder.write_pipeline(config, windows, pipeline_folder.make_record(held_out))
    uri = write_report(config, run)
    assert uri == f"{run.folder.uri}/report.html"
    return Path(uri).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_the_page_is_one_small_file_that_loads_nothing_but_the_videos_beside_it(folder: Path, page: Page) -> None:
    assert (folder / "report.html").stat().st_size < MAX_BYTES
    outside = {a for a in page.addresses if not a.startswith(("data:", "#"))}
    assert outside == {f"videos/{path.name}" for path in (folder / "videos").iterdir()}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", page.html)
    assert page.tags.count("script") == 1
    assert fetched(page.html) == []


def test_captions_are_text(page: Page) -> None:
    assert HOSTILE in page.text
    assert "<script>alert" not in page.html
    assert page.html.count("&lt;script&gt;alert") >= 8


def test_every_number_of_the_record_is_there_with_its_n_groups_and_interval(page: Page, held_out: list[Window]) -> None:
    record = pipeline_folder.make_record(held_out)
    assert {v.metric for v in record.values} == {"fvd", "kvd", "lpips"}
    for value in record.values:
        assert value.value is not None
        assert f" {number(value.value, 5)} " in page.text
    entries: list[Value | Comparison] = [*record.values, *record.comparisons]
    for entry in entries:
        if entry.interval:
            assert f"[{number(entry.interval.low)}, {number(entry.interval.high)}] 95 %" in page.text
    for comparison in record.comparisons:
        assert comparison.difference is not None
        assert number(comparison.difference) in page.text
    assert " 10 10 9 400 " in page.text  # N, N real, groups, d: the last two test windows share a group
    floor = record.value("fvd", "base").floor
    assert floor is not None
    beside = f"{number(floor.arm)} at N = 5; real against real: {number(floor.value)} at N = 5"
    assert beside in page.text
    assert "FVD (secondary) base lower" in page.text
    assert "KVD base lower" in page.text
    assert "N = 10 is below d = 400" in page.text
    assert record.warnings[0] in page.text


def test_provenance_settings_and_counts_are_shown(page: Page) -> None:
    for shown in (
        "a1" * 32,
        "nano-style@abcdef123456",
        "7 (training), 0 (generation)",
        "8, 16",
        "0.01, cosine to 0",
        "4 in 4 groups",
        "10 in 9 groups",
        "shot too short 3",
        "σ 0.8 1.200 0.9355 −22.0 %",
        "mean 0.9000 0.7357 −18.3 %",
        "mean of the last 5 steps",
    ):
        assert shown in page.text


def test_filmstrips_show_every_arm_of_one_window_a_group(page: Page) -> None:
    assert page.tags.count("section") == 4
    assert page.tags.count("video") == 4 * 3
    assert page.html.count(", frame 16") == 4 * 3
    assert len(set(re.findall(r"videos/\w+", page.html))) == 4


def test_the_videos_play_where_browsers_play_and_show_the_lossless_frames(folder: Path, held_out: list[Window]) -> None:
    path = sorted((folder / "videos").glob("*-real.mp4"))[0]
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    frames, fps = read_video(path)
    (source,) = [w for w in held_out if w.row["window_id"].startswith(path.name.split("-")[0])]
    assert fps == 16
    assert frames.shape == source.frames.shape
    assert np.abs(frames.astype(int) - source.frames).mean() < 4


def test_missing_pieces_are_said(tmp_path: Path) -> None:
    windows = pipeline_folder.make_windows(train=3, val=0, test=2)
    held_out = [w for w in windows if w.row["split"] == "test"]
    config = pipeline_folder.pipeline_config(tmp_path)
    record = pipeline_folder.make_record(held_out, without=("fvd", "lpips"))
    run = pipeline_folder.write_pipeline(config, windows, record, held_out=False)
    for video in (tmp_path / "runs/p-generate/videos/adapter").iterdir():
        video.unlink()
    text = Page(Path(write_report(config, run)).read_text()).text
    assert (
        "No held-out loss was measured; nothing can be said of adapter against base: no metric has an interval" in text
    )
    assert "The val split is empty: there is no held-out loss" in text
    assert "FVD – – – – 0 0 0 – not available: the record does not hold it" in text
    assert "not available: no weights for LPIPS" in text
    assert "LPIPS could not be computed." in text
    assert "no video of this arm" in text


def test_a_pipeline_without_any_step_still_gives_a_page(tmp_path: Path) -> None:
    config = pipeline_folder.pipeline_config(tmp_path)
    text = Page(Path(write_report(config, Run.open(config))).read_text()).text
    for shown in ("No adapter was trained; nothing was evaluated.", "There is no complete dataset", "not published"):
        assert shown in text
