"""The rows of the tables of a metrics record, as every page shows them (`metrics_part` of `parts.html.j2`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cinesynth.metrics import catalogue
from cinesynth.metrics.record import Comparison, MetricsRecord, Value
from cinesynth.report.page import number
from cinesynth.report.verdict import left_out, reading

_BETTER = {"lower": "lower", "higher": "higher", "match": "as the real set"}


@dataclass(frozen=True)
class ValueRow:
    """One metric of one arm."""

    label: str
    value: Value
    better: str
    """Which values are better, in words."""
    d: int | None
    """Dimension of the features."""
    note: str


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of an arm and the baseline."""

    label: str
    comparison: Comparison
    reading: str


@dataclass(frozen=True)
class Tables:
    """Everything that `metrics_part` shows."""

    record: MetricsRecord
    values: list[ValueRow]
    comparisons: list[ComparisonRow]

    @classmethod
    def of(cls, record: MetricsRecord, asked: Sequence[str] = ()) -> Tables:
        """Of a record; a metric that was asked for and is not there gets a row that says so."""
        values = []
        for value in record.values:
            definition = record.definitions.get(value.metric)
            better, d = (_BETTER[definition.direction], definition.d) if definition else ("–", None)
            values.append(ValueRow(record.label(value.metric), value, better, d, _note(value)))
        for metric in asked:
            if metric not in {value.metric for value in record.values}:
                absent = Value(metric=metric, arm="–", value=None, n_real=0, n=0, groups=0)
                told = "not available: the record does not hold it"
                values.append(ValueRow(catalogue.label(metric), absent, "–", None, told))
        return cls(record, values, comparison_rows(record))


def comparison_rows(record: MetricsRecord) -> list[ComparisonRow]:
    """The differences of a record, with what they say and what they leave out."""
    return [ComparisonRow(record.label(c.metric), c, _told(record, c)) for c in record.comparisons]


def _told(record: MetricsRecord, comparison: Comparison) -> str:
    said = reading(record, comparison)
    return f"{said}; left out: {left_out(comparison.left_out)}" if comparison.left_out else said


def _note(value: Value) -> str:
    parts = []
    if value.real is not None:
        parts.append(f"real windows: {number(value.real)}")
    if value.floor:
        if value.floor.arm is not None:
            parts.append(f"{number(value.floor.arm)} at N = {value.floor.n}")
        parts.append(f"real against real: {number(value.floor.value)} at N = {value.floor.n}")
    if value.value is None:
        parts.append(f"not available: {value.reason or 'no reason was recorded'}")
    elif value.reason:
        parts.append(value.reason)
    return "; ".join(parts)
