"""What several trainings show together, and the difference of differences in two domains.

The intervals of a metrics record are jackknives over groups of windows, of one training each. The trainings of several
seeds are measured on the same windows, so their errors are correlated, and how much is not known. The standard
deviation of a mean is never above the mean of the standard deviations (Cauchy and Schwarz), whatever the correlation:
that is taken, with the fewest degrees of freedom of them. The interval tells of other windows and not of other seeds.
So a difference counts as shown only where it has the same sign at every seed as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.special import stdtrit

from cinesynth.metrics.record import Comparison

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A difference, over the seeds that were trained.

    Attributes:
        value: mean over seeds.
        by_seed: the difference of each.
        error: standard error over groups of windows; None where there is none.
        freedom: its degrees of freedom.
        n: videos of an arm, of each seed.
        groups: of these, the fewest at any seed.
        reason: why there is no interval.
    """

    value: float
    by_seed: tuple[float, ...]
    error: float | None
    freedom: float
    n: int
    groups: int
    reason: str = ""

    @property
    def low(self) -> float:
        """Lower end of the interval; NaN where there is none."""
        return self.value - self._reach()

    @property
    def high(self) -> float:
        """Upper end of the interval; NaN where there is none."""
        return self.value + self._reach()

    @property
    def has_interval(self) -> bool:
        return self.error is not None

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes zero and every seed has the same sign."""
        same = all(value > 0 for value in self.by_seed) or all(value < 0 for value in self.by_seed)
        return self.has_interval and same and (self.low > 0 or self.high < 0)

    def _reach(self) -> float:
        return math.nan if self.error is None else float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error


def over_seeds(comparisons: Sequence[Comparison]) -> Estimate | None:
    """The mean difference of trainings that differ by their seed; None where none of them has one."""
    found = [c for c in comparisons if c.difference is not None]
    if not found:
        return None
    values = tuple(float(c.difference) for c in found if c.difference is not None)
    intervals = [c.interval for c in found if c.interval is not None]
    reason = next((c.reason for c in found if c.interval is None and c.reason), "")
    whole = len(intervals) == len(found)
    return Estimate(
        fmean(values),
        values,
        fmean(i.standard_error for i in intervals) if whole else None,
        min((i.degrees_of_freedom for i in intervals), default=0.0),
        min(c.n for c in found),
        min(c.groups for c in found),
        "" if whole else reason,
    )


def beyond(away: Estimate, home: Estimate) -> Estimate:
    """`away` - `home`, two differences on windows that have nothing in common: their variances add.

    The degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).
    """
    seeds = tuple(a - b for a, b in zip(away.by_seed, home.by_seed, strict=False))
    n, groups = min(away.n, home.n), min(away.groups, home.groups)
    value = away.value - home.value
    if away.error is None or home.error is None:
        return Estimate(value, seeds, None, 0.0, n, groups, away.reason or home.reason)
    parts = [(away.error**2, away.freedom), (home.error**2, home.freedom)]
    total = sum(v for v, _ in parts)
    spread = sum(v**2 / freedom for v, freedom in parts)
    freedom = total**2 / spread if spread else sum(freedom for _, freedom in parts)
    return Estimate(value, seeds, math.sqrt(total), freedom, n, groups)
