"""Metrics that are a number of each video, or of each pair: means over groups, with jackknife intervals.

The mean runs over the frames that count, over the windows of a group, then over groups, so that a group counts once
however many windows it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cinesynth.metrics.metric import Metric, Results, Sample, interval_fields
from cinesynth.metrics.record import Comparison, Value
from cinesynth.metrics.statistics import (
    Interval,
    group_mean,
    group_mean_interval,
    group_means_of,
    jackknife,
    require_groups,
    strata,
)

Means = Mapping[str, float]
"""Group to the mean of its windows."""


def group_means(metric: Metric, real: Sample, arms: Sequence[Sample]) -> Results:
    """The value of each arm, and its difference to the first arm.

    A difference takes the windows that both arms have; where they share no name, the arms are two unpaired samples.
    Where the direction is `match`, an arm is as far off as its mean lies from the real set's mean, and the difference
    is that of the two distances.
    """
    real_windows = window_means(metric, real)
    real_value = group_mean(real_windows, real.groups) if real_windows else None
    windows = [window_means(metric, arm) for arm in arms]
    values = []
    for arm, found in zip(arms, windows, strict=True):
        counts = {"n_real": len(real.groups), "n": len(found), "groups": len({arm.groups[key] for key in found})}
        if not found:
            reason = arm.unavailable or f"no frame from {metric.first_frame} on"
            values.append(Value(metric=metric.name, arm=arm.name, value=None, reason=reason, **counts))
            continue
        fields = interval_fields(partial(group_mean_interval, found, arm.groups, arm.name))
        value = group_mean(found, arm.groups)
        values.append(Value(metric=metric.name, arm=arm.name, value=value, real=real_value, **fields, **counts))
    reference = group_means_of(real_windows, real.groups) if metric.direction == "match" else None
    comparisons = [
        _comparison(metric, arm, found, arms[0], windows[0], reference)
        for arm, found in zip(arms[1:], windows[1:], strict=True)
        if found and windows[0] and (reference is None or reference)
    ]
    return Results(values, comparisons)


def window_means(metric: Metric, sample: Sample) -> dict[str, float]:
    """Mean of each video over the frames that count; a row of one number is that number."""
    rows = {key: np.atleast_1d(row) for key, row in sample.rows.items()}
    return {key: float(row[metric.first_frame :].mean()) for key, row in rows.items() if len(row) > metric.first_frame}


def _comparison(
    metric: Metric,
    arm: Sample,
    arm_windows: Mapping[str, float],
    baseline: Sample,
    baseline_windows: Mapping[str, float],
    reference: Means | None,
) -> Comparison:
    if common := [key for key in arm_windows if key in baseline_windows]:
        arm_windows = {key: arm_windows[key] for key in common}
        baseline_windows = {key: baseline_windows[key] for key in common}
    sets: dict[str, Means] = {
        arm.name: group_means_of(arm_windows, arm.groups),
        baseline.name: group_means_of(baseline_windows, baseline.groups),
    }
    if reference is not None:
        sets["real"] = reference
    return Comparison.of(
        metric.name,
        arm.name,
        baseline.name,
        _difference(*sets.values()),
        n=min(len(arm_windows), len(baseline_windows)),
        groups=len({*sets[arm.name], *sets[baseline.name]}),
        **interval_fields(partial(_difference_interval, sets)),
    )


def _difference(arm: Means, baseline: Means, reference: Means | None = None) -> float:
    """Of the two means; with a reference, of their distances to its mean."""
    a, b = _mean(arm), _mean(baseline)
    return a - b if reference is None else abs(a - _mean(reference)) - abs(b - _mean(reference))


def _difference_interval(sets: Mapping[str, Means]) -> Interval:
    require_groups({name: len(means) for name, means in sets.items()})
    replicates = [
        [_difference(*(_without(means, name) for means in sets.values())) for name in names]
        for names in strata(*sets.values())
    ]
    return jackknife(_difference(*sets.values()), replicates)


def _mean(means: Means) -> float:
    return float(np.mean(list(means.values())))


def _without(means: Means, name: str) -> Means:
    return {group: value for group, value in means.items() if group != name}
