"""The benchmark of metrics at a size where it takes seconds."""

from __future__ import annotations

import json

import pytest

from benchmarks import metrics


def test_it_measures_every_part_and_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--videos", "2", "--frames", "4", "--size", "48x32", "--rounds", "1", "--metrics", "lpips"]
    metrics.main([*tiny, "--workers", "0", "--dims", "8", "12", "--kvd", "16"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last) == {"name", "figures", "targets", "pass"}
    figures = last["figures"]
    assert last["targets"].keys() <= figures.keys()
    assert figures["extraction_seconds"] > 0
    assert figures["evaluation_seconds_kept"] < figures["evaluation_seconds_anew"]
    assert figures["frechet_difference"] < 1e-9
    assert figures["kvd_seconds"] < 1
