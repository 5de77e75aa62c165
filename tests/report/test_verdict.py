"""The verdict says what the intervals allow, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from cinesynth.config import TrainSettings
from cinesynth.metrics import catalogue
from cinesynth.metrics.record import Comparison, Definition, IntervalRecord, MetricsRecord, Value
from cinesynth.report.training import Training
from cinesynth.report.verdict import evaluation_verdict, reading, verdict


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


def definition(name: str) -> Definition:
    """Of a metric of the catalogue, or of one that a newcomer would add."""
    label, direction, primary, needs = {
        "smoothness": ("smoothness", "higher", True, []),
        "motion": ("motion", "match", True, ["real"]),
    }.get(name) or ((m := catalogue.find(name)).label, m.direction, m.primary, m.needs)
    fields = {
        "label": label,
        "direction": direction,
        "primary": primary,
        "needs": needs,
        "description": "",
        "version": 1,
    }
    fields |= {"frames": "", "weights": {}, "preprocessing": {}, "preprocessing_sha256": "", "decoder": "", "dtype": ""}
    return Definition.model_validate({**fields, "metric": name, "device": "cpu"})


def record(*comparisons: Comparison, values: tuple[Value, ...] = ()) -> MetricsRecord:
    names = {entry.metric for entry in (*comparisons, *values)}
    fields: dict[str, Any] = {"schema": 3, "code_version": "0", "arms": ["base", "adapter"]}
    fields |= {"definitions": {name: definition(name) for name in names}}
    fields |= {"values": values, "comparisons": comparisons, "warnings": [], "environment": {}}
    return MetricsRecord.model_validate(fields)


def training(*losses: float, stage: str = "style") -> list[tuple[str, Training]]:
    held_out = [{"step": i, "val_loss": loss} for i, loss in enumerate(losses)]
    return [(stage, Training(TrainSettings(), [], held_out))]


def test_an_interval_below_zero_is_closer_above_is_further_and_around_is_undecided() -> None:
    sentence = verdict(
        training(0.5, 0.45, 0.4),
        record(
            comparison("kvd", -0.2, -0.3, -0.1),
            comparison("lpips", 0.05, 0.01, 0.09),
            comparison("motion", -0.05, -0.2, 0.1),
        ),
    )
    assert sentence == (
        "Held-out loss fell from 0.5000 to 0.4000 (−20.0 %); "
        "the adapter's videos are closer to the real ones than the base's by KVD (−0.2000 [−0.3000, −0.1000]); "
        "the adapter's videos are further from the real ones than the base's by LPIPS (+0.05000 [0.01000, 0.09000]); "
        "adapter − base is not distinguishable from zero by motion "
        "(−0.05000 [−0.2000, 0.1000]; at least 0.1500 would have been shown)."
    )


def test_without_an_interval_nothing_is_claimed_however_large_the_difference() -> None:
    sentence = verdict(training(0.5, 0.6), record(comparison("kvd", -900.0, None, None)))
    assert sentence == (
        "Held-out loss rose from 0.5000 to 0.6000 (+20.0 %); "
        "nothing can be said of adapter against base: no interval: 1 group."
    )
    found = comparison("fvd", -900.0, None, None)
    assert reading(record(found), found) == "undecided: no interval: 1 group"


def test_each_stage_has_its_own_loss() -> None:
    both = [*training(0.5, 0.4), *training(0.4, 0.3, stage="motion")]
    assert verdict(both, record()).startswith(
        "Style: held-out loss fell from 0.5000 to 0.4000 (−20.0 %); motion: held-out loss fell from 0.4000 to 0.3000"
    )


def test_secondary_metrics_decide_nothing() -> None:
    late = comparison("lpips_late", -0.2, -0.3, -0.1)
    assert verdict([], record(comparison("kvd", 0.1, -0.1, 0.3), late)) == (
        "No adapter was trained; adapter − base is not distinguishable from zero by KVD "
        "(+0.1000 [−0.1000, 0.3000]; at least 0.2000 would have been shown)."
    )
    assert verdict([], record(late)).endswith(
        "no primary metric (KVD and LPIPS) was computed: the others are shown, and decide nothing."
    )
    assert record(late).label("lpips_late") == "late LPIPS (secondary)"


def test_higher_is_better_where_the_metric_says_so() -> None:
    smoother = comparison("smoothness", 0.2, 0.1, 0.3)
    assert reading(record(smoother), smoother) == "adapter is better"
    assert "the adapter's videos are better than the base's by smoothness (+0.2000" in verdict([], record(smoother))
    rougher = comparison("smoothness", -0.2, -0.3, -0.1)
    assert "the adapter's videos are worse than the base's by smoothness" in verdict([], record(rougher))


def test_of_a_metric_to_match_a_smaller_distance_is_closer() -> None:
    nearer = comparison("motion", -0.2, -0.3, -0.1)
    assert reading(record(nearer), nearer) == "adapter is closer to the real windows"
    assert "closer to the real ones than the base's by motion" in verdict([], record(nearer))


def test_a_metric_that_could_not_be_computed_is_named() -> None:
    gone = Value(metric="lpips", arm="adapter", value=None, reason="no weights", n_real=8, n=8, groups=4)
    sentence = verdict([], record(comparison("kvd", -0.2, -0.3, -0.1), values=(gone,)))
    assert sentence.startswith("No adapter was trained; the adapter's videos are closer")
    assert sentence.endswith("LPIPS could not be computed.")


def test_what_the_comparison_leaves_out_is_said() -> None:
    lost = comparison("kvd", -0.2, -0.3, -0.1).model_copy(update={"left_out": {"base": 2, "adapter": 1}})
    assert evaluation_verdict(record(lost)) == (
        "The adapter's videos are closer to the real ones than the base's by KVD (−0.2000 [−0.3000, −0.1000]); "
        "compared are the videos that all arms have, which leaves out 2 of base and 1 of adapter."
    )


def test_a_single_arm_has_its_values_and_nothing_to_compare() -> None:
    interval = IntervalRecord(low=0.1, high=0.5, level=0.95, standard_error=1, degrees_of_freedom=5)
    counts = {"n_real": 8, "n": 8, "groups": 8}
    kvd = Value(metric="kvd", arm="base", value=0.3, interval=interval, **counts)
    lpips = Value(metric="lpips", arm="base", value=None, reason="no weights", **counts)
    alone = record(values=(kvd, lpips)).model_copy(update={"arms": ["base"]})
    assert evaluation_verdict(alone) == "Base has KVD 0.3000 [0.1000, 0.5000]; there is no second arm to compare."


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (-1.0, -2.0, -0.5, "adapter is closer to the real windows"),
        (1.0, 0.5, 2.0, "base is closer to the real windows"),
        (1.0, -0.5, 2.0, "not distinguishable from zero; a difference of at least 1.500 would have been shown"),
    ],
)
def test_reading_of_one_comparison(difference: float, low: float, high: float, said: str) -> None:
    found = comparison("kvd", difference, low, high)
    assert reading(record(found), found) == said


def test_a_loss_that_is_the_same_as_shown_is_not_called_a_change() -> None:
    assert verdict(training(0.5, 0.500001), None) == "Held-out loss stayed at 0.5000; nothing was evaluated."
