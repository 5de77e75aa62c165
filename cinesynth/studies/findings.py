"""What a study's page shows: plain data, which `cinesynth.report.study` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cinesynth.report.page import number, signed
from cinesynth.studies.estimates import Estimate


@dataclass(frozen=True)
class Mark:
    """A point of a chart, with its interval and a word beside it, where it has any."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    word: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart: series of marks.

    Attributes:
        title: above it.
        x, y: what the axes are.
        series: name to marks; those of a series are joined by a line.
        levels: name to a value of y, drawn across.
        logarithmic: whether x is.
        note: below it.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[Mark]]
    levels: Mapping[str, float] = field(default_factory=dict)
    logarithmic: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        shows: what the data show, and what they do not, sentence by sentence.
        tables, charts: below it.
        warnings: what a reader has to know before the numbers.
    """

    shows: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Chart]
    warnings: Sequence[str] = ()


EMPTY = "empty"
"""What a table says where a cell has no finished run; the list of cells says why."""


def told(estimate: Estimate | None) -> str:
    """A difference with its interval, as a table shows it."""
    if estimate is None:
        return EMPTY
    return f"{signed(estimate.value)} {interval(estimate)}"


def interval(estimate: Estimate) -> str:
    """`[low, high]`, or why there is none."""
    if not estimate.has_interval:
        return f"({estimate.reason or 'no interval'})"
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def seeds(estimate: Estimate) -> str:
    """The difference of each seed."""
    return ", ".join(signed(value) for value in estimate.by_seed)


def sentence(what: str, estimate: Estimate | None, lower: str, higher: str) -> str:
    """One sentence on a difference, never more than it carries.

    Args:
        what: the difference is of, such as `KVD, rank 32 - rank 4`.
        estimate: of it.
        lower, higher: what it means that it is below, or above, zero.
    """
    if estimate is None:
        return f"{what}: nothing was measured."
    if not estimate.has_interval:
        return f"{what}: {signed(estimate.value)}, without an interval ({estimate.reason}): it decides nothing."
    numbers = f"{signed(estimate.value)} {interval(estimate)}"
    if estimate.is_shown:
        return f"{what}: {numbers} shows that {lower if estimate.value < 0 else higher}."
    if estimate.low > 0 or estimate.high < 0:
        return f"{what}: {numbers} excludes zero, but the seeds differ in sign ({seeds(estimate)}): not shown."
    return f"{what}: {numbers} holds zero: the data do not show a difference."


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
