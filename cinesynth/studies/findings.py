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
        is_of_seeds: the numbers are of trainings with every seed, and not of one.
    """

    shows: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Chart]
    warnings: Sequence[str] = ()
    is_of_seeds: bool = True


EMPTY = "empty"
"""What a table says where a cell has no finished run; the list of cells says why."""


def told(estimate: Estimate | None) -> str:
    """A difference with its interval, as a table shows it."""
    if estimate is None:
        return EMPTY
    why = "" if estimate.low is not None else f" ({estimate.reason or 'no interval'})"
    return _numbers(estimate) + why


def seeds(estimate: Estimate | None) -> str:
    """The difference of each seed."""
    return "–" if estimate is None else ", ".join(signed(value) for value in estimate.by_seed.values())


def _numbers(estimate: Estimate) -> str:
    trained = len(estimate.by_seed)
    lacking = "" if trained == estimate.wanted else f" ({trained} of {estimate.wanted} seeds)"
    ends = "" if estimate.low is None else f" [{number(estimate.low)}, {number(estimate.high)}]"
    return f"{signed(estimate.value)}{ends}{lacking}"


def sentence(what: str, estimate: Estimate | None, lower: str, higher: str) -> str:
    """One sentence on a difference, never more than it carries.

    Args:
        what: the difference is of, such as `KVD, rank 32 - rank 4`.
        estimate: of it.
        lower, higher: what it means that it is below, or above, zero.
    """
    if estimate is None:
        return f"{what}: nothing was measured."
    numbers = _numbers(estimate)
    if estimate.low is None:
        return f"{what}: {numbers}, without an interval ({estimate.reason}): it decides nothing."
    if estimate.is_shown:
        return f"{what}: {numbers} shows that {lower if estimate.value < 0 else higher}."
    if estimate.excludes_zero:
        return f"{what}: {numbers} excludes zero, but the seeds differ in sign ({seeds(estimate)}): not shown."
    return f"{what}: {numbers} holds zero: the data do not show a difference."


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
