"""What several trainings show together, and the difference of differences in two domains.

The intervals of a metrics record are jackknives over groups of windows, of one training each. The trainings of several
seeds are measured on the same windows, so their errors are correlated, and how much is not known. The standard
deviation of a mean is never above the mean of the standard deviations (Cauchy and Schwarz), whatever the correlation:
so the interval of a mean over seeds reaches as far as those of the seeds do on average. It tells of other windows and
not of other seeds. Therefore a difference counts as shown only where it has the same sign at every seed as well.

Two domains share no window. The interval of a difference of two independent estimates reaches as far as the root of the
sum of the squares of theirs (variances add; with ends that lie unequally far: Zou and Donner, Statistics in Medicine
27, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from cinesynth.metrics.record import Comparison


@dataclass(frozen=True)
class Estimate:
    """A difference, over the seeds that were trained.

    Attributes:
        value: mean over seeds.
        by_seed: seed to its difference.
        left_out: seeds that there should be too, and that nothing could be compared at.
        low, high: ends of the interval over groups of windows; None where there is none.
        n: videos of an arm, the fewest at any seed.
        groups: of these.
        reason: why there is no interval.
        comparisons: seed to what its difference is from; none of a difference of differences.
    """

    value: float
    by_seed: Mapping[int, float]
    left_out: tuple[int, ...]
    low: float | None
    high: float | None
    n: int
    groups: int
    reason: str = ""
    comparisons: Mapping[int, Comparison] = field(default_factory=dict, repr=False)

    @property
    def wanted(self) -> int:
        """How many seeds there should be."""
        return len(self.by_seed) + len(self.left_out)

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and zero is not in it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def smallest_shown(self) -> float | None:
        """The least difference, up or down, whose interval would exclude zero, were it as wide as this one; None where
        there is none."""
        if self.low is None or self.high is None:
            return None
        return max(self.value - self.low, self.high - self.value)

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero and every seed has the same sign."""
        values = self.by_seed.values()
        return self.excludes_zero and (all(v > 0 for v in values) or all(v < 0 for v in values))


def over_seeds(comparisons: Mapping[int, Comparison | None]) -> Estimate | None:
    """The mean difference of trainings, by their seed; None where none of them has one."""
    found = {seed: c for seed, c in comparisons.items() if c is not None and c.difference is not None}
    if not found:
        return None
    by_seed = {seed: float(c.difference) for seed, c in found.items() if c.difference is not None}
    value = fmean(by_seed.values())
    intervals = {seed: c.interval for seed, c in found.items() if c.interval is not None}
    low = high = None
    reason = next((c.reason for c in found.values() if c.interval is None and c.reason), "")
    if len(intervals) == len(found):
        low = value - fmean(by_seed[seed] - i.low for seed, i in intervals.items())
        high = value + fmean(i.high - by_seed[seed] for seed, i in intervals.items())
        reason = ""
    n, groups = min(c.n for c in found.values()), min(c.groups for c in found.values())
    left_out = tuple(seed for seed in comparisons if seed not in found)
    return Estimate(value, by_seed, left_out, low, high, n, groups, reason, found)


def beyond(away: Estimate, home: Estimate) -> Estimate | None:
    """`away` - `home`, two differences on windows that have nothing in common, both over the seeds that both have: a
    training in one domain is not compared with another one. None where they have no seed in common."""
    common = [seed for seed in away.by_seed if seed in home.by_seed]
    wanted = {*away.by_seed, *away.left_out, *home.by_seed, *home.left_out}
    there, here = (over_seeds({seed: of.comparisons[seed] for seed in common}) for of in (away, home))
    if there is None or here is None:
        return None
    return _less(there, here, tuple(sorted(wanted.difference(common))))


def _less(away: Estimate, home: Estimate, left_out: tuple[int, ...]) -> Estimate:
    """`away` - `home`, of the same seeds."""
    by_seed = {seed: away.by_seed[seed] - home.by_seed[seed] for seed in away.by_seed}
    value = away.value - home.value
    n, groups = min(away.n, home.n), min(away.groups, home.groups)
    if away.low is None or away.high is None or home.low is None or home.high is None:
        return Estimate(value, by_seed, left_out, None, None, n, groups, away.reason or home.reason)
    low = value - math.hypot(away.value - away.low, home.high - home.value)
    high = value + math.hypot(away.high - away.value, home.value - home.low)
    return Estimate(value, by_seed, left_out, low, high, n, groups)
