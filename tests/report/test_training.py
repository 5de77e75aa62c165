"""A training stage's figures and charts, and the page of one train run."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cinesynth.config import TrainConfig, TrainSettings
from cinesynth.report.curves import held_out_curve, loss_curve, running_mean
from cinesynth.report.training import Training, write_train_report
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from tests.report import pipeline_folder
from tests.report.loading import fetched


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
