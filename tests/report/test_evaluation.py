"""The page of an evaluation: every number, what windows it shows, what it says where something is missing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import definition_of, evaluate
from cinesynth.metrics.metric import Sample
from cinesynth.metrics.record import MetricsRecord, left_out_warnings
from cinesynth.metrics.windows import WindowValue
from cinesynth.report import evaluation
from cinesynth.report.evaluation import DomainMeans, pick_windows, write_evaluation_report
from cinesynth.report.page import MAX_BYTES
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from tests.report.loading import fetched
from tests.report.test_pipeline import Page

IDS = [f"w{i}" for i in range(9)]
ARMS = ("base", "adapter")
LPIPS = {"base": [0.9, 0.5, 0.1, 0.3, 0.7, 0.4, 0.6, 0.2, 0.8], "adapter": [0.02 * i for i in range(1, 9)]}
"""Of each window; the adapter lacks the last one."""


def rows_of(metric: str, values: dict[str, list[float]]) -> list[WindowValue]:
    return [
        WindowValue(metric, arm, key, f"g{key}", ("film", "drawn")[place % 2], value)
        for arm, of in values.items()
        for place, (key, value) in enumerate(zip(IDS, of, strict=False))
    ]


def record_of(values: dict[str, list[float]], gone: str = "") -> MetricsRecord:
    """A record that the real statistics made of a number for each window, beside a metric without weights."""
    lpips, kvd = catalogue.METRICS["lpips"], catalogue.METRICS["kvd"]
    groups = {key: f"g{key}" for key in IDS}
    samples = [
        Sample(arm, {key: np.full(9, value) for key, value in zip(IDS, of, strict=False)}, groups)
        for arm, of in values.items()
    ]
    found = lpips.measure(lpips, Sample("real", {}, groups), samples)
    definitions = {m.name: definition_of(m, EvaluateSettings(), (9, 9), "cpu") for m in (kvd, lpips)}
    missing = [
        {"metric": "kvd", "arm": arm, "value": None, "reason": gone, "n_real": 9, "n": 0, "groups": 0} for arm in values
    ]
    fields: dict[str, Any] = {"code_version": "0", "arms": list(values), "environment": {"python": "3"}}
    fields |= {"values": [*(missing if gone else []), *found.values], "comparisons": found.comparisons}
    warnings = left_out_warnings(found.comparisons, definitions)
    return MetricsRecord.model_validate({**fields, "definitions": definitions, "warnings": warnings})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Set to the files of its videos: plain pictures that grow brighter."""
    root, made = tmp_path_factory.mktemp("videos"), {}
    for name, keys in (("real", IDS), ("base", IDS), ("adapter", IDS[:-1])):
        frames = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None] * 20, (9, 32, 48, 3))
        made[name] = {key: write_video(root / name / f"{key}.mkv", frames, codec="ffv1") for key in keys}
    return made


def config_of(folders: dict[str, dict[str, Path]], storage: Path, **changes: Any) -> EvaluateConfig:
    places = {name: str(next(iter(files.values())).parent) for name, files in folders.items()}
    arms = {name: place for name, place in places.items() if name != "real"}
    values = {"name": "ev", "storage": str(storage), "real": places["real"], "arms": arms}
    return parse_config(EvaluateConfig, {**values, "metrics": ["kvd", "lpips"], **changes})


def write_windows(run: Run, rows: list[WindowValue]) -> None:
    columns = zip(*rows, strict=True)
    table = pa.table({name: list(of) for name, of in zip(WindowValue._fields, columns, strict=True)})
    pq.write_table(table, Path(run.folder.path) / "windows.parquet")


@pytest.fixture(scope="module")
def page(folders: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Page:
    config = config_of(folders, tmp_path_factory.mktemp("runs"))
    run = Run.open(config, {"real": "a" * 64})
    write_windows(run, rows_of("lpips", LPIPS))
    uri = write_evaluation_report(config, run, record_of(LPIPS, "no weights: clip is in no package"), folders)
    return Page(Path(uri).read_text())


def test_the_page_is_small_and_loads_nothing(page: Page) -> None:
    assert len(page.html) < MAX_BYTES
    assert {a for a in page.addresses if not a.startswith("data:")} == {"metrics.json", "windows.csv"}
    assert "script" not in page.tags
    assert fetched(page.html) == []


def test_it_says_what_is_shown_left_out_and_not_available(page: Page) -> None:
    assert "The adapter's videos are closer to the real ones than the base's by LPIPS (−0.3725" in page.text
    assert (
        "KVD could not be computed; compared are the videos that all arms have, which leaves out 1 of base."
        in page.text
    )
    assert "Warning LPIPS: arms are compared on the 8 videos that all of them have; left out: 1 of base" in page.text
    assert "adapter is closer to the real windows; left out: 1 of base" in page.text
    assert page.text.count("not available: no weights: clip is in no package") == 2
    assert "LPIPS base lower 0.50000" in page.text


def test_weights_preprocessing_and_inputs_are_told_in_full(page: Page) -> None:
    for sha in catalogue.METRICS["lpips"].network.weights(EvaluateSettings()).values():
        assert sha in page.text
    assert "x / 127.5 - 1" in page.text
    assert "a" * 64 in page.text


def test_the_best_the_median_and_the_worst_of_each_arm_are_shown_with_their_numbers(page: Page) -> None:
    assert pick_windows(rows_of("lpips", LPIPS), record_of(LPIPS), "lpips") == {
        "w2": ["best of base"],
        "w1": ["median of base"],
        "w0": ["worst of base", "best of adapter"],
        "w3": ["median of adapter"],
        "w7": ["worst of adapter"],
    }
    assert page.tags.count("section") == 5
    assert page.tags.count("img") == 5 * 3 * 6
    assert "worst of base, best of adapter real base 0.9000 adapter 0.02000 frames 0, 2, 3, 5, 6, 8" in page.text


def test_a_metric_to_match_ranks_by_the_distance_to_the_real_video() -> None:
    record = record_of({"base": [3.0, 1.0, 2.5]})
    record.definitions["lpips"].direction = "match"
    rows = rows_of("lpips", {"real": [3.5, 2.5, 2.5], "base": [3.0, 1.0, 2.5]})
    assert pick_windows(rows, record, "lpips") == {
        "w2": ["best of base"],
        "w0": ["median of base"],
        "w1": ["worst of base"],
    }
    record.definitions["lpips"].direction = "higher"
    assert next(iter(pick_windows(rows, record, "lpips"))) == "w0"


def test_means_by_domain_are_those_of_the_rows(page: Page) -> None:
    found = DomainMeans.of(record_of(LPIPS), rows_of("lpips", LPIPS))
    assert found.sets == ["base", "adapter"]
    assert found.rows == [
        ("LPIPS", "drawn", ["0.3500 (N 4)", "0.1000 (N 4)"]),
        ("LPIPS", "film", ["0.6200 (N 5)", "0.08000 (N 4)"]),
    ]
    assert "LPIPS film 0.6200 (N 5) 0.08000 (N 4)" in page.text
    nowhere = [row._replace(domain="") for row in rows_of("lpips", LPIPS)]
    assert DomainMeans.of(record_of(LPIPS), nowhere).rows == []


def test_windows_beyond_the_bytes_of_a_page_are_counted(
    folders: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_BYTES", 40_000)
    config = config_of(folders, tmp_path)
    run = Run.open(config)
    write_windows(run, rows_of("lpips", LPIPS))
    text = Page(Path(write_evaluation_report(config, run, record_of(LPIPS), folders)).read_text()).text
    assert "more would make the page too large and are left out" in text


def test_an_evaluation_writes_its_page(folders: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    result = evaluate(config_of(folders, tmp_path, metrics=["lpips"]))
    page = Page(Path(result["outputs"]["report"]).read_text())
    assert "late LPIPS (secondary) adapter − base" in page.text
    windows = tmp_path / "runs/ev/windows.csv"
    assert len(list(csv.DictReader(windows.open()))) == 2 * (9 + 8)
    assert page.tags.count("section") >= 3
