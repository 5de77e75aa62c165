"""The verdict says what the intervals allow, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from cinesynth.config import TrainSettings
from cinesynth.metrics.record import Comparison, IntervalRecord, MetricsRecord, Value
from cinesynth.report.training import Training
from cinesynth.report.verdict import reading, verdict


def comparison(metric: str, difference: float, low: float | None, high: float | None) -> Comparison:
    interval = None
    if low is not None and high is not None:
        interval = IntervalRecord(low=low, high=high, level=0.95, standard_error=1, degrees_of_freedom=5)
    return Comparison(
        metric=metric,
        arm="adapter",
        baseline="base",
        difference=difference,
        interval=interval,
        excludes_zero=None if low is None or high is None else low > 0 or high < 0,
        reason=None if interval else "no interval: 1 group",
        n=8,
        groups=4,
    )


def record(*comparisons: Comparison, values: tuple[Value, ...] = ()) -> MetricsRecord:
    fields: dict[str, Any] = {"schema": 1, "code_version": "0", "arms": ["base", "adapter"], "definitions": {}}
    fields |= {"values": values, "comparisons": comparisons, "warnings": [], "environment": {}}
    return MetricsRecord.model_validate(fields)


def training(*losses: float) -> Training:
    return Training(TrainSettings(), [], [{"step": i, "val_loss": loss} for i, loss in enumerate(losses)])


def test_an_interval_below_zero_is_closer_above_is_further_and_around_is_undecided() -> None:
    sentence = verdict(
        training(0.5, 0.45, 0.4),
        record(
            comparison("kvd", -0.2, -0.3, -0.1),
            comparison("lpips", 0.05, 0.01, 0.09),
            comparison("lpips_late", -0.05, -0.2, 0.1),
        ),
    )
    assert sentence == (
        "Held-out loss fell from 0.5000 to 0.4000 (−20.0 %); "
        "the adapter's videos are closer to the real ones than the base's by KVD (−0.2000 [−0.3000, −0.1000]); "
        "the adapter's videos are further from the real ones than the base's by LPIPS (+0.05000 [0.01000, 0.09000]); "
        "adapter − base is not distinguishable from zero by late LPIPS (−0.05000 [−0.2000, 0.1000])."
    )


def test_without_an_interval_nothing_is_claimed_however_large_the_difference() -> None:
    sentence = verdict(training(0.5, 0.6), record(comparison("fvd", -900.0, None, None)))
    assert sentence == (
        "Held-out loss rose from 0.5000 to 0.6000 (+20.0 %); "
        "nothing can be said of adapter against base: no interval: 1 group."
    )
    assert reading(comparison("fvd", -900.0, None, None)) == "undecided: no interval: 1 group"


def test_a_metric_that_could_not_be_computed_is_named() -> None:
    gone = Value(metric="lpips", arm="adapter", value=None, reason="no weights", n_real=8, n=8, groups=4)
    sentence = verdict(None, record(comparison("kvd", -0.2, -0.3, -0.1), values=(gone,)))
    assert sentence.startswith("No adapter was trained; the adapter's videos are closer")
    assert sentence.endswith("LPIPS could not be computed.")


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (-1.0, -2.0, -0.5, "adapter is closer to the real windows"),
        (1.0, 0.5, 2.0, "base is closer to the real windows"),
        (1.0, -0.5, 2.0, "not distinguishable from zero"),
    ],
)
def test_reading_of_one_comparison(difference: float, low: float, high: float, said: str) -> None:
    assert reading(comparison("kvd", difference, low, high)) == said


def test_a_loss_that_is_the_same_as_shown_is_not_called_a_change() -> None:
    assert verdict(training(0.5, 0.500001), None) == "Held-out loss stayed at 0.5000; nothing was evaluated."
