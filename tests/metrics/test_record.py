"""The record says what was left out and how small a difference could be seen; older records still open."""

from __future__ import annotations

from typing import Any

import pytest

from cinesynth.errors import StorageError
from cinesynth.metrics.record import Comparison, Definition, IntervalRecord, MetricsRecord, left_out_warnings


def interval(low: float, high: float) -> IntervalRecord:
    return IntervalRecord(low=low, high=high, level=0.95, standard_error=1, degrees_of_freedom=5)


def comparison(metric: str, arm: str, low: float, high: float, difference: float, **left_out: int) -> Comparison:
    fields: dict[str, Any] = {
        "interval": interval(low, high),
        "reason": None,
        "n": 9,
        "groups": 9,
        "left_out": left_out,
    }
    return Comparison.of(metric, arm, "base", difference, **fields)


def definition(name: str, label: str) -> Definition:
    fields = dict.fromkeys(("description", "frames", "preprocessing_sha256", "decoder", "dtype", "device"), "")
    fields |= {"metric": name, "label": label, "direction": "lower"}
    return Definition.model_validate(
        {**fields, "version": 1, "primary": True, "needs": [], "weights": {}, "preprocessing": {}}
    )


def record(*comparisons: Comparison) -> MetricsRecord:
    definitions = {"kvd": definition("kvd", "KVD"), "lpips": definition("lpips", "LPIPS")}
    fields: dict[str, Any] = {"code_version": "0", "arms": ["base", "a", "b"], "values": [], "environment": {}}
    warnings = left_out_warnings(comparisons, definitions)
    return MetricsRecord(definitions=definitions, comparisons=list(comparisons), warnings=warnings, **fields)


def test_the_smallest_difference_that_would_have_been_shown_is_the_longer_half() -> None:
    assert comparison("kvd", "a", -0.5, 1.0, 0.2).smallest_shown == pytest.approx(0.8)
    none = comparison("kvd", "a", -0.5, 1.0, 0.2).model_copy(update={"interval": None})
    assert none.smallest_shown is None
    table = record(comparison("kvd", "a", -0.5, 1.0, 0.2), comparison("lpips", "a", 0.1, 0.3, 0.2)).table()
    assert "no difference shown; one of 0.8 would have been" in table
    assert "base is better" in table


def test_what_was_left_out_is_one_warning_for_all_metrics_that_leave_out_the_same() -> None:
    found = record(
        comparison("kvd", "a", -1, 1, 0, base=2, a=1),
        comparison("kvd", "b", -1, 1, 0, base=2),
        comparison("lpips", "a", -1, 1, 0, base=2, a=1),
    )
    told = "compared on the 9 videos that all of them have; left out: 2 of base, 1 of a"
    assert found.warnings == [f"KVD, LPIPS: arms are {told}"]
    assert f"warning: KVD, LPIPS: arms are {told}" in found.table()
    assert found.figures()["kvd/a-base/left_out/a"] == 1
    assert record(comparison("kvd", "a", -1, 1, 0)).warnings == []


def test_a_record_of_schema_2_opens_and_left_nothing_out() -> None:
    data = record(comparison("kvd", "a", -0.5, 1.0, 0.2)).to_json()
    del data["comparisons"][0]["left_out"]
    opened = MetricsRecord.parse({**data, "schema": 2}, "here")
    assert opened.comparisons[0].left_out == {}
    assert opened.to_json()["schema"] == 3
    for schema in (0, 4, None, "2"):
        with pytest.raises(StorageError, match="this version reads 1 to 3"):
            MetricsRecord.parse({**data, "schema": schema}, "here")
