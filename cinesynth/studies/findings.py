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
UNAVAILABLE = "unavailable"
"""What a table says of a metric that has no number, as where its weights are absent; `unsaid` says why."""


def told(estimate: Estimate | None) -> str:
    """A difference with its interval, as a table shows it."""
    if estimate is None:
        return EMPTY
    return _numbers(estimate) + ("" if estimate.low is not None else " (no interval)")


def seeds(estimate: Estimate | None) -> str:
    """The difference of each seed."""
    return "–" if estimate is None else ", ".join(signed(value) for value in estimate.by_seed.values())


def fewer_seeds(measured: int, wanted: int) -> str:
    """The word beside a point of a chart that is a mean over fewer seeds than there should be; empty for all."""
    return "" if measured == wanted else f"{measured} of {wanted} seeds"


def _numbers(estimate: Estimate) -> str:
    lacking = ""
    if estimate.left_out:
        absent = f"without seed {', '.join(map(str, estimate.left_out))}"
        lacking = f" ({len(estimate.by_seed)} of {estimate.wanted} seeds, {absent})"
    ends = "" if estimate.low is None else f" [{number(estimate.low)}, {number(estimate.high)}]"
    return f"{signed(estimate.value)}{ends}{lacking}"


@dataclass(frozen=True)
class Difference:
    """A difference that a question asks for.

    Attributes:
        what: it is of, such as `KVD, rank 32 - rank 4`.
        estimate: of it; None where nothing was measured.
        lower, higher: what it means that it is below, or above, zero.
    """

    what: str
    estimate: Estimate | None
    lower: str
    higher: str


def conclusions(asked: Sequence[Difference]) -> list[str]:
    """What differences show, then what they leave open, and why; never more than their intervals carry."""
    shown, mixed, open_, lacking = [], [], [], []
    undecided: dict[str, list[str]] = {}
    for difference in asked:
        what, estimate = difference.what, difference.estimate
        if estimate is None:
            lacking.append(what)
        elif estimate.low is None:
            undecided.setdefault(estimate.reason or "no interval", []).append(f"{what}: {_numbers(estimate)}")
        elif estimate.is_shown:
            meaning = difference.lower if estimate.value < 0 else difference.higher
            shown.append(f"{what}: {_numbers(estimate)} shows that {meaning}.")
        elif estimate.excludes_zero:
            why = f"excludes zero, but the seeds differ in sign ({seeds(estimate)}): not shown"
            mixed.append(f"{what}: {_numbers(estimate)} {why}.")
        else:
            least = number(estimate.smallest_shown)
            open_.append(f"{what}: {_numbers(estimate)}, one of {least} would have been shown")
    found = [*shown, *mixed]
    if open_:
        found.append(f"The data do not show a difference where the interval holds zero: {'; '.join(open_)}.")
    found += [f"Undecided ({why}): {'; '.join(whats)}." for why, whats in undecided.items()]
    if lacking:
        found.append(f"Nothing was measured of: {'; '.join(lacking)}.")
    return found


def unsaid(reasons: Mapping[str, str]) -> list[str]:
    """What cannot be said, by metrics that have no number: name to the reason."""
    alike: dict[str, list[str]] = {}
    for name, why in reasons.items():
        alike.setdefault(why, []).append(name)
    return [f"Nothing can be said by {joined(names)}: {why}." for why, names in alike.items()]


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
