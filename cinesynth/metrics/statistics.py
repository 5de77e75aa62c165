"""Intervals for small sets: the delete-one-group jackknife, of a value and of a paired difference.

Windows of one shot are not independent, so whole groups are left out. With G groups and the statistic t(-g) without
group g, the variance is (G - 1) / G * sum over g of (t(-g) - mean of t(-g))^2 (Efron and Stein, 1981), and Student's
interval is t +- the quantile * root of it. There is no bootstrap with replacement: duplicates inflate a U-statistic.

Student's interval alone covers too little where the shares of groups are skewed, as those of KVD away from zero and of
distances are: 88 to 92 % in place of 95 % at 8 to 12 groups. The interval is therefore the hull of Student's and that
of Hall's transformation (J. R. Stat. Soc. B 54, 1992), with the skewness that the t(-g) show (see `_skewness`). Hall's
alone would shorten one side by a skewness that few groups tell badly. `tests/metrics/test_coverage.py` measures it.

Groups that occur in different sets (two unpaired samples, or an arm that lacks a few videos) are strata. Their
variances add, and the sum has Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946):
(sum of v)^2 / sum of (v^2 / (G - 1)), with the variance v and the G groups of each stratum. Third moments add too.

A stratum of a single group has no mean of its own to vary around. It contributes (t(-g) - t)^2, with one degree of
freedom: the groups of all strata are drawn alike, so the influence of each is 0 on average, and its square estimates
its variance. Where the groups of that stratum differ from the others, this errs towards a wider interval.

Below `MIN_GROUPS` groups in any set there is no interval: the variance is then an estimate from too few numbers, and
Student's quantile, which assumes that they are normal, promises more than it holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
MIN_GROUPS = 8
METHOD = "jackknife, one group left out at a time; hull of Student t and its correction for skewness"


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    level: float = LEVEL
    method: str = METHOD

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class NoInterval(ValueError):
    """An interval that the data do not support; the message says why."""


def require_groups(counts: Mapping[str, int]) -> None:
    """Raise NoInterval, naming the sets, where one has fewer than `MIN_GROUPS` groups; `counts` is set to groups."""
    few = [
        f"{name} has {count} group{'' if count == 1 else 's'}" for name, count in counts.items() if count < MIN_GROUPS
    ]
    if few:
        raise NoInterval(f"{' and '.join(few)}, an interval needs {MIN_GROUPS}")


def jackknife(value: float, replicates: Sequence[Sequence[float]], level: float = LEVEL) -> Interval:
    """Interval of a statistic from its values without each group.

    Args:
        value: the statistic on all data.
        replicates: per stratum (see `strata`), the statistic without each group of that stratum.
        level: confidence level.

    Raises:
        NoInterval: fewer than two groups in all strata together.
    """
    total = sum(map(len, replicates))
    if total < 2:
        raise NoInterval(f"an interval needs at least 2 groups, there is {total}")
    arrays = [np.asarray(stratum, np.float64) for stratum in replicates]
    parts = [_variance(value, stratum) for stratum in arrays]
    error = math.sqrt(sum(v for v, _ in parts))
    freedom = _degrees_of_freedom(parts)
    quantile = float(stdtrit(freedom, (1 + level) / 2))
    skewness = _skewness(value, arrays, error)
    below, above = (max(quantile, abs(_untransformed(q, skewness))) for q in (quantile, -quantile))
    return Interval(value - below * error, value + above * error, error, freedom, level)


def _skewness(value: float, replicates: Sequence[NDArray[np.float64]], error: float) -> float:
    """Skewness of the statistic's distribution: its third central moment over the standard error cubed.

    Of one stratum it is -sum of (t(-g) - mean)^3 / (sum of (t(-g) - mean)^2)^(3/2), six times the acceleration of
    Efron (J. Am. Stat. Assoc. 82, 1987).
    """
    if not error:
        return 0.0
    moments = [_deviations(value, stratum) / error for stratum in replicates]
    return -float(sum((scaled**3).sum() for scaled in moments))


def _untransformed(quantile: float, skewness: float) -> float:
    """T for which T + s T^2 / 3 + s^2 T^3 / 27 + s / 6 is the quantile (Hall, 1992), with the skewness s."""
    if abs(skewness) < 1e-6:
        return quantile
    root = math.cbrt(1 + skewness * (quantile - skewness / 6))
    return 3 * (root - 1) / skewness


def _degrees_of_freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Satterthwaite's, of variances with their own degrees of freedom; where nothing varies, the sum of these."""
    spread = sum(v**2 / freedom for v, freedom in parts)
    if len(parts) == 1 or not spread:
        return float(sum(freedom for _, freedom in parts))
    return sum(v for v, _ in parts) ** 2 / spread


def _variance(value: float, without: NDArray[np.float64]) -> tuple[float, int]:
    """Variance that a stratum contributes, and its degrees of freedom."""
    return float((_deviations(value, without) ** 2).sum()), max(1, len(without) - 1)


def _deviations(value: float, without: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much leaving out each group of a stratum changes the statistic; their squares add up to its variance."""
    groups = len(without)
    if groups == 1:
        return without - value
    return math.sqrt((groups - 1) / groups) * (without - without.mean())


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
    return float(np.mean(list(group_means_of(values, groups).values())))


def group_mean_interval(
    values: Mapping[str, float], groups: Mapping[str, str], name: str, level: float = LEVEL
) -> Interval:
    """Interval of `group_mean` (give differences of two arms as `values` for a paired difference).

    Args:
        values: item (video) to value.
        groups: item to group, for at least these items.
        name: of the set, for the error.
        level: confidence level.

    Raises:
        NoInterval: fewer than `MIN_GROUPS` groups.
    """
    means = np.asarray(list(group_means_of(values, groups).values()), np.float64)
    require_groups({name: len(means)})
    without = (means.sum() - means) / (len(means) - 1)
    return jackknife(float(means.mean()), [without.tolist()], level)


def group_means_of(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Group to the mean over its items, for the groups that the values belong to, sorted."""
    collected: dict[str, list[float]] = {}
    for item in sorted(values):
        collected.setdefault(groups[item], []).append(values[item])
    return {name: float(np.mean(items)) for name, items in sorted(collected.items())}


def halves(groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Two disjoint sets of items of equal size that share no group; the same for the same input.

    Groups are taken by size, largest first, and among equals by hash, each into the half that is smaller so far; the
    larger half is then cut to the size of the other.

    Raises:
        NoInterval: a half has fewer than two groups: it would show one shot, not the set.
    """
    collected: dict[str, list[str]] = {}
    for item in sorted(groups):
        collected.setdefault(groups[item], []).append(item)
    a: list[str] = []
    b: list[str] = []
    for name in sorted(collected, key=lambda g: (-len(collected[g]), hashlib.sha256(g.encode()).hexdigest())):
        (a if len(a) <= len(b) else b).extend(collected[name])
    size = min(len(a), len(b))
    a, b = sorted(a[:size]), sorted(b[:size])
    if (least := min(len({groups[item] for item in half}) for half in (a, b))) < 2:
        raise NoInterval(f"two halves need at least 2 groups each, one has {least}")
    return a, b
