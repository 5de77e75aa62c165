"""Network outputs to values, intervals and paired differences: one function a family.

Each takes the arms in order, the baseline first, and gives the entries of the metrics record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.frechet import frechet_distance
from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.record import Comparison, Floor, IntervalRecord, Value
from cinesynth.metrics.statistics import (
    Interval,
    NoInterval,
    group_mean,
    group_mean_interval,
    halves,
    jackknife,
    strata,
)

NO_FVD_INTERVAL = "no valid interval: FVD is biased by about 1/n"
Results = tuple[list[Value], list[Comparison]]


@dataclass(frozen=True)
class Sample:
    """Features of one set: `rows` [N, d] in the order of `ids`, and the group of each row."""

    name: str
    ids: list[str]
    rows: NDArray[np.float64]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """The rows of some ids."""
        index = {key: i for i, key in enumerate(self.ids)}
        return self.rows[[index[key] for key in ids]]


def fvd(real: Sample, arms: Sequence[Sample]) -> Results:
    """FVD of every arm beside the floor between two halves of the real set; never an interval."""
    floor, no_floor = _floor(real)
    distances = [frechet_distance(real.rows, arm.rows) for arm in arms]
    values = [
        Value(
            metric="fvd",
            arm=arm.name,
            value=distance,
            reason="; ".join(part for part in (NO_FVD_INTERVAL, no_floor) if part),
            floor=floor,
            **_counts(real, arm),
        )
        for arm, distance in zip(arms, distances, strict=True)
    ]
    comparisons = [
        Comparison(
            metric="fvd",
            arm=arm.name,
            baseline=arms[0].name,
            difference=distance - distances[0],
            reason=NO_FVD_INTERVAL,
            n=min(len(arm), len(arms[0])),
            groups=len(set(arm.groups) | set(arms[0].groups)),
        )
        for arm, distance in zip(arms[1:], distances[1:], strict=True)
    ]
    return values, comparisons


def _floor(real: Sample) -> tuple[Floor | None, str]:
    try:
        a, b = halves(dict(zip(real.ids, real.groups, strict=True)))
    except NoInterval as e:
        return None, f"no floor: {e}"
    return Floor(value=frechet_distance(real.take(a), real.take(b)), n=len(a)), ""


def kvd(real: Sample, arms: Sequence[Sample]) -> Results:
    """KVD of every arm, and its paired difference to the first against the same real set, with jackknife intervals."""
    if lacking := [sample.name for sample in (real, *arms) if len(set(sample.groups)) < 2]:
        reason = f"KVD compares videos of different groups, and {' and '.join(lacking)} has one group"
        return [Value(metric="kvd", arm=a.name, value=None, reason=reason, **_counts(real, a)) for a in arms], []
    kernels = [KernelSums(real.rows, arm.rows, real.groups, arm.groups) for arm in arms]
    totals = [kernel.value() for kernel in kernels]

    def interval_of(signs: Mapping[int, int]) -> Interval:
        """Interval of the signed sum of some arms' KVD, each group left out of all sets at once."""
        replicates = []
        for names in strata(real.groups, *(arms[i].groups for i in signs)):
            parts = [s * np.array(kernels[i].leave_out(names)) for i, s in signs.items()]
            replicates.append(np.sum(parts, axis=0).tolist())
        return jackknife(sum(s * totals[i] for i, s in signs.items()), replicates)

    values = []
    for i, arm in enumerate(arms):
        fields = _interval(partial(interval_of, {i: 1}))
        values.append(Value(metric="kvd", arm=arm.name, value=totals[i], **fields, **_counts(real, arm)))
    comparisons = []
    for i, arm in enumerate(arms[1:], start=1):
        n, groups = min(len(arm), len(arms[0])), len(set(arm.groups) | set(arms[0].groups))
        make = _interval(partial(interval_of, {i: 1, 0: -1}))
        comparisons.append(_comparison("kvd", arm.name, arms[0].name, totals[i] - totals[0], make, n, groups))
    return values, comparisons


@dataclass(frozen=True)
class Distances:
    """Distances [T] to the paired real video for every paired id of an arm; or why there are none."""

    name: str
    frames: dict[str, NDArray[np.float64]]
    unavailable: str | None = None


def lpips(metric: str, first: int, n_real: int, arms: Sequence[Distances], groups: Mapping[str, str]) -> Results:
    """Mean LPIPS over the frames from `first` on, then over the windows of a group, then over groups.

    The paired difference takes the windows that both arms have.
    """
    means = [{key: float(v[first:].mean()) for key, v in arm.frames.items() if len(v) > first} for arm in arms]
    values = []
    for arm, mean in zip(arms, means, strict=True):
        counts = {"n_real": n_real, "n": len(mean), "groups": len({groups[key] for key in mean})}
        if not mean:
            reason = arm.unavailable or f"no frame from {first} on"
            values.append(Value(metric=metric, arm=arm.name, value=None, reason=reason, **counts))
            continue
        fields = _interval(partial(group_mean_interval, mean, groups))
        values.append(Value(metric=metric, arm=arm.name, value=group_mean(mean, groups), **fields, **counts))
    comparisons = []
    for arm, mean in zip(arms[1:], means[1:], strict=True):
        difference = {key: mean[key] - means[0][key] for key in mean if key in means[0]}
        if difference:
            made = _interval(partial(group_mean_interval, difference, groups))
            value, count = group_mean(difference, groups), len({groups[key] for key in difference})
            comparisons.append(_comparison(metric, arm.name, arms[0].name, value, made, len(difference), count))
    return values, comparisons


def _counts(real: Sample, arm: Sample) -> dict[str, int]:
    return {"n_real": len(real), "n": len(arm), "groups": len(set(arm.groups))}


def _interval(make: Callable[[], Interval]) -> dict[str, Any]:
    """The fields `interval` and `reason` of an entry."""
    try:
        return {"interval": IntervalRecord.of(make()), "reason": None}
    except NoInterval as e:
        return {"interval": None, "reason": f"no interval: {e}"}


def _comparison(
    metric: str, arm: str, baseline: str, difference: float, fields: dict[str, Any], n: int, groups: int
) -> Comparison:
    interval = fields["interval"]
    return Comparison(
        metric=metric,
        arm=arm,
        baseline=baseline,
        difference=difference,
        excludes_zero=None if interval is None else interval.low > 0 or interval.high < 0,
        n=n,
        groups=groups,
        **fields,
    )
