"""Intervals of what raters answered. Answers of one rater, and those to one scene, are not independent.

So whole raters, and whole groups of windows, are left out one at a time (`cinesynth.metrics.statistics`), and the wider
of the two intervals is given; each needs 8 of its kind. That of a share is Student's: no share can be as skewed as the
correction allows for. Where a share does not vary so (all raters, and all groups, have the same one) it is Wilson's
interval, with the raters or groups in place of the answers. With fewer than 8 of both, a share gets Wilson's interval
of its answers, which is then too narrow and says so, and any other figure none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from scipy.special import ndtri, stdtrit

from cinesynth.metrics.statistics import LEVEL, MIN_GROUPS, Interval, jackknife


class Answered(Protocol):
    """Something that a rater said of a window."""

    @property
    def rater(self) -> str: ...

    @property
    def group(self) -> str: ...


A = TypeVar("A", bound=Answered)

_ROUNDING = 1e-9
"""A reach below this is of the arithmetic: equal means differ in their last digit."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval where one is given, and which kind that is or why there is none.

    Attributes:
        too_narrow: the interval takes answers as independent, so that it decides nothing.
    """

    value: float
    low: float | None
    high: float | None
    method: str
    too_narrow: bool = False

    def excludes(self, value: float) -> bool:
        """Whether an interval that may decide does not hold this value."""
        if self.low is None or self.high is None or self.too_narrow:
            return False
        return self.low > value or self.high < value

    @property
    def interval(self) -> Estimate | None:
        """Itself, where it has an interval."""
        return None if self.low is None else self


def wilson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share (Journal of the American Statistical Association 22, 1927).

    Args:
        successes: of n; half ones count half, which errs towards a wider interval.
        n: trials, above 0.
        level: confidence level.
    """
    z = float(ndtri((1 + level) / 2))
    p, spread = successes / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def share(score: Callable[[A], float], rows: Sequence[A]) -> Estimate:
    """The mean of scores between 0 and 1 over rows (one at least), with an interval."""

    def mean(some: Sequence[A]) -> float:
        return sum(map(score, some)) / len(some)

    value = mean(rows)
    found = [(_student_reach(interval), method) for interval, method in _jackknifed(mean, rows)]
    reach, method = max(found, key=lambda pair: pair[0], default=(0.0, ""))
    if reach > _ROUNDING:
        return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), method)
    counts = {"raters": len(_units(rows, "raters")), "groups": len(_units(rows, "groups"))}
    enough = {kind: n for kind, n in counts.items() if n >= MIN_GROUPS}
    if enough:
        kind = min(enough, key=lambda kind: enough[kind])
        return Estimate(value, *wilson(value * enough[kind], enough[kind]), f"Wilson, over {enough[kind]} {kind}")
    told = f"Wilson, over {len(rows)} answers as if they were independent: too narrow"
    return Estimate(value, *wilson(value * len(rows), len(rows)), told, too_narrow=True)


def estimate(statistic: Callable[[Sequence[A]], float], rows: Sequence[A]) -> Estimate:
    """A statistic of rows with the wider jackknife interval, where there is one.

    `statistic` may raise ValueError for rows that do not give it: with all rows that is the caller's, and where some
    are left out there is no interval.
    """
    value = statistic(rows)
    try:
        found = _jackknifed(statistic, rows)
    except ValueError as e:
        return Estimate(value, None, None, f"none: with some left out, {e}")
    if not found:
        return Estimate(value, None, None, f"none: fewer than {MIN_GROUPS} raters and groups")
    interval, method = max(found, key=lambda pair: pair[0].high - pair[0].low)
    return Estimate(value, interval.low, interval.high, method)


def _student_reach(interval: Interval) -> float:
    return float(stdtrit(interval.degrees_of_freedom, (1 + LEVEL) / 2)) * interval.standard_error


def _jackknifed(statistic: Callable[[Sequence[A]], float], rows: Sequence[A]) -> list[tuple[Interval, str]]:
    """The interval over raters and that over groups, each where there are enough, and what it is called."""
    found = []
    for kind in ("raters", "groups"):
        units = _units(rows, kind)
        if len(units) >= MIN_GROUPS:
            without = [statistic([row for row in rows if _unit(row, kind) != unit]) for unit in units]
            found.append((jackknife(statistic(rows), [without]), f"jackknife over {len(units)} {kind}"))
    return found


def _units(rows: Sequence[A], kind: str) -> list[str]:
    return sorted({_unit(row, kind) for row in rows})


def _unit(row: Answered, kind: str) -> str:
    return row.rater if kind == "raters" else row.group
