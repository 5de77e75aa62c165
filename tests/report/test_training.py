"""A training stage's figures and charts, and the page of one train run."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cinesynth.config import TrainConfig, TrainSettings
from cinesynth.data.video import write_video
from cinesynth.report.checkpoints import validation_scenes
from cinesynth.report.curves import held_out_curve, loss_curve, running_mean, study_chart
from cinesynth.report.training import Training, write_train_report
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.studies.findings import Chart, Mark
from cinesynth.train.validations import Validations, video_file
from tests.report import pipeline_folder
from tests.report.loading import fetched


def test_equal_seeds_are_a_mark_without_a_bar() -> None:
    value = 0.1
    mean = fmean([value] * 3)
    assert mean > value  # by rounding
    for y, bound in ((mean, value), (value, mean)):
        chart = Chart("seeds", "rank", "LPIPS", {"adapters": [Mark(4.0, y, bound, bound)]})
        assert "adapters" in study_chart(chart)


def test_running_mean_is_numpys_convolution_once_the_window_is_full() -> None:
    values = np.random.default_rng(0).normal(size=50)
    mean = running_mean(list(values), 7)
    assert mean[6:] == pytest.approx(np.convolve(values, np.ones(7) / 7, "valid"))
    assert mean[:3] == pytest.approx([values[0], values[:2].mean(), values[:3].mean()])


def test_charts_are_inline_svg_in_the_pages_colours() -> None:
    steps = list(range(1, 5001))
    loss = loss_curve(steps, [1 / step for step in steps], [0.001] * 5000)
    held_out = held_out_curve([0, 10], [0.5, 0.4], {"0.2": [0.5, 0.45], "0.8": [0.5, 0.35]})
    for svg in (loss, held_out):
        ElementTree.fromstring(svg)
        assert len(svg) < 300_000
        assert "var(--accent)" in svg
        assert not re.search(r"#0a0b0\d|<style|<metadata|https?:", svg)
    assert "mean of the last 250 steps" in loss
    assert {"σ 0.2", "σ 0.8", "mean"} <= set(re.findall(r">([^<>]+)</text>", held_out))


def test_of_a_step_that_was_run_again_the_last_record_counts(tmp_path: Path) -> None:
    run = Run.open(parse_config(TrainConfig, {"name": "t", "storage": str(tmp_path), "dataset": "d"}))
    run.write_events("train-00000000", [{"step": 1, "loss": 9.0, "lr": 1.0}, {"step": 2, "loss": 8.0, "lr": 1.0}])
    run.write_events("train-00000001", [{"step": 2, "loss": 7.0, "lr": 1.0}, {"step": 2, "val_loss": 0.5}])
    training = Training.read(TrainSettings(), run.folder)
    assert [event["loss"] for event in training.steps] == [9.0, 7.0]
    assert [event["val_loss"] for event in training.held_out] == [0.5]


def test_a_train_run_has_a_page_of_its_own(tmp_path: Path) -> None:
    pipeline = pipeline_folder.pipeline_config(tmp_path)
    run = pipeline_folder.write_training(pipeline)
    fields = {"name": run.name, "storage": str(tmp_path), "dataset": "p-prepare"}
    config = parse_config(TrainConfig, {**pipeline.style.model_dump(mode="json"), **fields})
    html = Path(write_train_report(config, run)).read_text()
    assert html.count("<svg") == 2
    assert fetched(html) == []
    assert "0.7357" in html
    assert "p-style" in html


GREYS = {
    ("window-b", None): 10,
    ("window-b", 20): 60,
    ("window-b", 40): 110,
    ("window-c", None): 160,
    ("window-c", 40): 210,
}
"""What is on the videos of a training's validations, by window and step (None: the real ones). One was not kept."""


@pytest.fixture
def validated(tmp_path: Path) -> tuple[TrainConfig, Run]:
    """A run with the loss by noise level and two validations by videos, after one that was made otherwise."""
    fields = {"name": "noir", "storage": str(tmp_path), "dataset": "d", "validation_videos": {"every": 20}}
    config = parse_config(TrainConfig, {**fields, "optimizer": {"steps": 40}})
    run = Run.open(config)
    drawn = {
        step: {"0": 2 / step, "0.75": 1 / step} | ({"0.25": 3 / step} if step % 4 == 0 else {}) for step in range(1, 41)
    }
    steps = [
        {"step": step, "loss": 1 / step, "lr": 0.1, "loss_from_sigma": by_sigma} for step, by_sigma in drawn.items()
    ]
    run.write_events("train-00000000", steps)
    groups = {"window-a": "one", "window-b": "one", "window-c": "two"}
    windows = [{"video": video, "group": group, "caption": f"of {video}"} for video, group in groups.items()]
    found = Validations(run.folder, config)
    found.write(10, {"figures": {"lpips": 0.777}, "set": "other", "windows": windows})
    for step, lpips in ((20, 0.4125), (40, 0.3125)):
        found.write(step, {"figures": {"lpips": lpips, "kvd": lpips / 8}, "set": "same", "windows": windows})
    for (window, made_at), grey in GREYS.items():
        frames = np.full((9, 32, 48, 3), grey, np.uint8)
        found.folder.upload(write_video(tmp_path / "video.mp4", frames), video_file(made_at, window))
    return config, run


def grey_of(uri: str) -> float:
    """Mean level of a picture on a page."""
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).mean())


def test_quarters_of_the_noise_levels_are_named_alike_whichever_were_drawn() -> None:
    by_sigma = {"0.75": 0.5, "0.5": 0.25}
    steps = [{"step": step, "loss": 1.0, "lr": 0.1, "loss_from_sigma": by_sigma} for step in (1, 2)]
    svg = Training.of(TrainSettings(), steps).bands_svg()
    assert svg is not None
    assert {name for name in re.findall(r">([^<>]+)</text>", svg) if "σ" in name} == {"σ 0.5-0.75", "σ 0.75-1"}


def test_the_loss_by_noise_level_is_a_curve_for_each_quarter(validated: tuple[TrainConfig, Run]) -> None:
    svg = Training.read(validated[0], validated[1].folder).bands_svg()
    assert svg is not None
    lines = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke: var\(--accent\)', svg)
    assert [line.count("L") + 1 for line in lines] == [40, 10, 40]
    assert [name for name in re.findall(r">([^<>]+)</text>", svg) if "σ" in name] == [
        "σ 0.75-1",
        "σ 0-0.25",
        "σ 0.25-0.5",
    ]
    assert Training.of(TrainSettings(), [{"step": 1, "loss": 1.0, "lr": 0.1}]).bands_svg() is None


def test_a_page_names_a_dataset_without_credentials(validated: tuple[TrainConfig, Run]) -> None:
    config, run = validated
    kept = config.model_copy(update={"dataset": "s3://key:secret@bucket/clips?region=eu-1"})
    html = Path(write_train_report(kept, run)).read_text()
    assert "s3://bucket/clips" in html
    assert "secret" not in html


def test_a_page_shows_lpips_and_what_each_checkpoint_made(validated: tuple[TrainConfig, Run]) -> None:
    config, run = validated
    html = Path(write_train_report(config, run)).read_text()
    assert "Training loss by noise level" in html
    chart = html.partition('aria-label="LPIPS to the real windows, by optimiser step')[2].partition("</svg>")[0]
    assert re.findall(r">(LPIPS[^<]*)</text>", chart) == ["LPIPS to the real windows", "LPIPS"]
    rows = re.findall(r"<tr>(<t[hd].*?)</tr>", html.partition("Videos of held-out windows")[2], re.DOTALL)
    cells = [re.sub(r"<[^>]+>", " ", row).split() for row in rows]
    assert cells[0] == ["step", "KVD", "LPIPS"]
    assert cells[1:3] == [["20", "0.05156", "0.4125"], ["40", "0.03906", "0.3125"]]
    assert "0.777" not in html
    for link in (links := re.findall(r'href="(validations/[^"]+)"', html)):
        assert run.folder.exists(link)
    assert len(links) == len(GREYS)
    assert html.count("no video of this arm") == 1


def test_strips_are_the_real_window_then_its_checkpoints_of_a_window_a_group(
    validated: tuple[TrainConfig, Run],
) -> None:
    config, run = validated
    scenes = validation_scenes(run.folder, Training.read(config, run.folder).by_videos)
    assert [scene.window_id for scene in scenes] == ["window-c", "window-b"]  # by hash; a is of the group of b
    for scene in scenes:
        assert [strip.arm for strip in scene.strips] == ["real", "step 20", "step 40"]
        assert scene.caption == f"of {scene.window_id}"
        for step, strip in zip((None, 20, 40), scene.strips, strict=True):
            grey = GREYS.get((scene.window_id, step))
            assert [grey_of(image) for image in strip.images] == pytest.approx([grey] * 6 if grey else [], abs=4)
