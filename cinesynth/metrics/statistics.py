"""Intervals for small sets: the delete-one-group jackknife, of a value and of a paired difference.

Windows of one shot are not independent, so whole groups are left out. With G groups and the statistic t(-g) without
group g, the variance is (G - 1) / G * sum over g of (t(-g) - mean of t(-g))^2 (Efron and Stein, 1981), and the interval
is t +- t-quantile(G - 1) * root of it. A bootstrap with replacement is not offered: duplicates inflate a U-statistic.

Groups that occur in different sets (two unpaired samples) are strata: their variances add.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
METHOD = "jackknife, one group left out at a time; Student t"


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float
    standard_error: float
    degrees_of_freedom: int
    level: float = LEVEL

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class NoInterval(ValueError):
    """An interval that the data do not support; the message says why."""


def jackknife(value: float, replicates: Sequence[Sequence[float]], level: float = LEVEL) -> Interval:
    """Interval of a statistic from its values without each group.

    Args:
        value: the statistic on all data.
        replicates: per stratum (see `strata`), the statistic without each group of that stratum.
        level: confidence level.

    Raises:
        NoInterval: a stratum has fewer than two groups.
    """
    smallest = min((len(r) for r in replicates), default=0)
    if smallest < 2:
        raise NoInterval(f"an interval needs at least 2 groups, there is {smallest}")
    variance = 0.0
    for stratum in replicates:
        without = np.asarray(stratum, np.float64)
        variance += (len(without) - 1) / len(without) * float(((without - without.mean()) ** 2).sum())
    freedom = sum(len(r) - 1 for r in replicates)
    error = math.sqrt(variance)
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(value - reach, value + reach, error, freedom, level)


def strata(*sets: Iterable[str]) -> list[list[str]]:
    """Groups by which of the sets hold them: one stratum when all sets hold the same groups; sorted."""
    members: dict[str, list[int]] = {}
    for i, names in enumerate(sets):
        for name in set(names):
            members.setdefault(name, []).append(i)
    found: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(members):
        found.setdefault(tuple(members[name]), []).append(name)
    return [found[key] for key in sorted(found)]


def group_mean(values: Mapping[str, float], groups: Mapping[str, str]) -> float:
    """Mean over groups of the mean over a group's items, so that a group counts once however many windows it has."""
    return float(np.mean(list(_means(values, groups).values())))


def group_mean_interval(values: Mapping[str, float], groups: Mapping[str, str], level: float = LEVEL) -> Interval:
    """Interval of `group_mean` (give differences of two arms as `values` for a paired difference).

    Args:
        values: item (video) to value.
        groups: item to group, for at least these items.
        level: confidence level.

    Raises:
        NoInterval: fewer than two groups.
    """
    means = np.asarray(list(_means(values, groups).values()), np.float64)
    if len(means) < 2:
        raise NoInterval(f"an interval needs at least 2 groups, there is {len(means)}")
    without = (means.sum() - means) / (len(means) - 1)
    return jackknife(float(means.mean()), [without.tolist()], level)


def _means(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for item in sorted(values):
        collected.setdefault(groups[item], []).append(values[item])
    return {name: float(np.mean(items)) for name, items in sorted(collected.items())}


def halves(groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Two disjoint sets of items of equal size that share no group; the same for the same input.

    Groups are taken by size, largest first, and among equals by hash, each into the half that is smaller so far; the
    larger half is then cut to the size of the other.

    Raises:
        NoInterval: fewer than two groups.
    """
    collected: dict[str, list[str]] = {}
    for item in sorted(groups):
        collected.setdefault(groups[item], []).append(item)
    if len(collected) < 2:
        raise NoInterval("two halves need at least 2 groups, there is 1")
    a: list[str] = []
    b: list[str] = []
    for name in sorted(collected, key=lambda g: (-len(collected[g]), hashlib.sha256(g.encode()).hexdigest())):
        (a if len(a) <= len(b) else b).extend(collected[name])
    size = min(len(a), len(b))
    return sorted(a[:size]), sorted(b[:size])
