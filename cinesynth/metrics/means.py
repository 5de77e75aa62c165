"""Metrics that are a number of each video, or of each pair: means over groups, with jackknife intervals.

The mean runs over the frames that count, over the windows of a group, then over groups, so that a group counts once
however many windows it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.metric import Metric, Results, Sample, interval_fields, require_finite
from cinesynth.metrics.paired import NOTHING_SHARED, pairing
from cinesynth.metrics.record import Comparison, Value
from cinesynth.metrics.statistics import (
    METHOD,
    Interval,
    group_mean,
    group_mean_interval,
    group_means_of,
    jackknife,
    require_groups,
    strata,
)

METHOD_OF_DISTANCES = f"{METHOD}; hull over the sides of the real value that the means may lie on"

Means = Mapping[str, float]
"""Group to the mean of its windows, or window to its own."""


def group_means(metric: Metric, real: Sample, arms: Sequence[Sample]) -> Results:
    """The value of each arm, and its difference to the first arm on the videos that all arms have (see `pairing`).

    Where the direction is `match`, an arm is as far off as its mean lies from the real set's mean, and the difference
    is that of the two distances.

    Raises MetricError where a number that counts is not finite.
    """
    real_windows = window_means(metric, real)
    real_value = group_mean(real_windows, real.groups) if real_windows else None
    windows = {arm.name: window_means(metric, arm) for arm in arms}
    values = []
    for arm in arms:
        found = windows[arm.name]
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
        _comparison(metric, arm, arms[0], windows, reference)
        for arm in arms[1:]
        if windows[arm.name] and windows[arms[0].name] and (reference is None or reference)
    ]
    return Results(values, comparisons)


def window_means(metric: Metric, sample: Sample) -> dict[str, float]:
    """Mean of each video over the frames that count; a row of one number is that number.

    Raises MetricError where one of them is not finite.
    """
    found = {}
    for key, row in sample.rows.items():
        counted = np.atleast_1d(row)[metric.first_frame :]
        if len(counted):
            require_finite(metric, sample.name, key, counted)
            found[key] = float(counted.mean())
    return found


def _comparison(
    metric: Metric, arm: Sample, baseline: Sample, windows: Mapping[str, Means], reference: Means | None
) -> Comparison:
    pair = pairing(windows, arm.name)
    if not pair.n:
        fields: dict[str, Any] = {"interval": None, "reason": NOTHING_SHARED, "groups": 0}
        return Comparison.of(metric.name, arm.name, baseline.name, None, n=0, left_out=pair.left_out, **fields)
    sets: dict[str, Means] = {
        arm.name: group_means_of({key: windows[arm.name][key] for key in pair.arm}, arm.groups),
        baseline.name: group_means_of({key: windows[baseline.name][key] for key in pair.baseline}, baseline.groups),
    }
    if reference is not None:
        sets["real"] = reference
    return Comparison.of(
        metric.name,
        arm.name,
        baseline.name,
        _difference(*sets.values()),
        n=pair.n,
        groups=len({*sets[arm.name], *sets[baseline.name]}),
        left_out=pair.left_out,
        **interval_fields(partial(_difference_interval, sets)),
    )


def _difference(arm: Means, baseline: Means, reference: Means | None = None) -> float:
    """Of the two means; with a reference, of their distances to its mean."""
    a, b = _mean(arm), _mean(baseline)
    return a - b if reference is None else abs(a - _mean(reference)) - abs(b - _mean(reference))


def _difference_interval(sets: Mapping[str, Means]) -> Interval:
    require_groups({name: len(means) for name, means in sets.items()})
    if len(sets) == 2:
        return _jackknife_of([1, -1], list(sets.values()))
    return _distance_interval(*sets.values())


def _distance_interval(arm: Means, baseline: Means, reference: Means) -> Interval:
    """Interval of |a - r| - |b - r|, for the means a, b and r.

    The absolute value has a kink: where a mean lies near r, its distance is biased and far from normal. So the interval
    is the hull of those of s (a - r) - t (b - r) for the signs s and t that the data allow: both, where the interval of
    a - r (of b - r) holds 0, else the one that is seen. Each is of a sum of means, without a kink, and one of them has
    the true signs.
    """
    sets = [arm, baseline, reference]
    sides = [_signs(_jackknife_of(weights, sets)) for weights in ([1, 0, -1], [0, 1, -1])]
    found = [_jackknife_of([s, -t, t - s], sets) for s in sides[0] for t in sides[1]]
    widest = max(found, key=lambda interval: interval.standard_error)
    low, high = min(i.low for i in found), max(i.high for i in found)
    return replace(widest, low=low, high=high, method=METHOD_OF_DISTANCES)


def _signs(interval: Interval) -> list[int]:
    """The signs that a number may have."""
    if interval.excludes_zero:
        return [1 if interval.low > 0 else -1]
    return [1, -1]


def _jackknife_of(weights: Sequence[int], sets: Sequence[Means]) -> Interval:
    """Interval of the weighted sum of the means of some sets, each group left out of all of them at once."""
    counted = [(weight, of) for weight, of in zip(weights, sets, strict=True) if weight]
    replicates = [
        np.sum([weight * _means_without(of, names) for weight, of in counted], axis=0).tolist()
        for names in strata(*(of for _, of in counted))
    ]
    return jackknife(sum(weight * _mean(of) for weight, of in counted), replicates)


def _mean(means: Means) -> float:
    return float(np.mean(list(means.values())))


def _means_without(means: Means, names: Sequence[str]) -> NDArray[np.float64]:
    """The mean without each of some groups; without one that it does not hold, the mean."""
    left = np.array([means.get(name, np.nan) for name in names])
    without = (sum(means.values()) - left) / (len(means) - 1)
    return np.where(np.isnan(left), _mean(means), without)
