"""Weights that a record lacks are looked for again, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cinesynth.config import EvaluateSettings
from cinesynth.metrics.absent_weights import LaterWeights
from cinesynth.metrics.catalogue import METRICS


def test_weights_of_a_folder_are_there_as_soon_as_they_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvaluateSettings(weights=str(tmp_path))
    assert not LaterWeights().are_there("fid", settings)
    asked: list[EvaluateSettings] = []
    network = replace(METRICS["fid"].network, load=asked.append)
    monkeypatch.setitem(METRICS, "fid", replace(METRICS["fid"], network=network))
    later = LaterWeights()
    assert later.are_there("fid", settings)
    assert later.are_there("fid", settings)
    assert asked == [settings]


def test_a_metric_that_is_unknown_or_has_no_weights_gains_nothing() -> None:
    assert METRICS["tof"].network.load is None
    assert not LaterWeights().are_there("tof", EvaluateSettings())
    assert not LaterWeights().are_there("of_a_later_version", EvaluateSettings())
