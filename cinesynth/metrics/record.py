"""The metrics record, `metrics.json`: every number with its N, its interval and all that could change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cinesynth.errors import StorageError
from cinesynth.metrics import statistics

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class IntervalRecord(_Part):
    """A confidence interval and how it was made."""

    low: float
    high: float
    level: float
    standard_error: float
    degrees_of_freedom: int
    method: str = statistics.METHOD

    @classmethod
    def of(cls, interval: statistics.Interval) -> IntervalRecord:
        return cls(
            low=interval.low,
            high=interval.high,
            level=interval.level,
            standard_error=interval.standard_error,
            degrees_of_freedom=interval.degrees_of_freedom,
        )


class Definition(_Part):
    """How a metric was computed; two numbers compare only where these are equal."""

    metric: str
    version: int
    description: str
    d: int | None = Field(None, description="feature dimension")
    ddof: int | None = None
    frames: str = Field(description="which frames of a video count, 0-based")
    weights: dict[str, str] = Field(description="weights to sha256")
    preprocessing: dict[str, Any]
    preprocessing_sha256: str
    decoder: str
    dtype: str
    device: str
    seed: int | None = Field(None, description="none: nothing is drawn at random")


class Floor(_Part):
    """The metric between two halves of the real set that share no group, n videos each."""

    value: float
    n: int


class Value(_Part):
    """One metric of one arm against the real set."""

    metric: str
    arm: str
    value: float | None
    interval: IntervalRecord | None = None
    reason: str | None = Field(None, description="why there is no value, or no interval")
    n_real: int
    n: int
    groups: int
    floor: Floor | None = None


class Comparison(_Part):
    """Paired difference of an arm and the baseline (the first arm): negative is closer to the real set."""

    metric: str
    arm: str
    baseline: str
    difference: float | None
    interval: IntervalRecord | None = None
    excludes_zero: bool | None = None
    reason: str | None = None
    n: int
    groups: int


class MetricsRecord(_Part):
    """Everything that an evaluation found. Arms are in the order given; the first is the baseline."""

    schema_: Literal[1] = Field(1, alias="schema")
    code_version: str
    arms: list[str]
    definitions: dict[str, Definition]
    values: list[Value]
    comparisons: list[Comparison]
    warnings: list[str]
    environment: dict[str, str]

    def value(self, metric: str, arm: str) -> Value:
        """The entry of one metric and arm. Raises KeyError when it was not computed."""
        for entry in self.values:
            if (entry.metric, entry.arm) == (metric, arm):
                return entry
        raise KeyError(f"{metric}/{arm}")

    def comparison(self, metric: str, arm: str) -> Comparison:
        """The difference of one metric between an arm and the baseline. Raises KeyError when there is none."""
        for entry in self.comparisons:
            if (entry.metric, entry.arm) == (metric, arm):
                return entry
        raise KeyError(f"{metric}/{arm}")

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, as `metrics.json` holds it."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def read(cls, path: str | Path) -> MetricsRecord:
        """Read `metrics.json`. Raises StorageError when it is missing or of another schema."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, json.JSONDecodeError) as e:
            raise StorageError(f"{path} is not a readable metrics record: {e}") from e
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: Any, where: str) -> MetricsRecord:
        """Validate a record that was read. Raises StorageError for another schema."""
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise StorageError(
                f"{where}: metrics record of schema {found!r}, this version reads {SCHEMA}; evaluate again"
            )
        return cls.model_validate(data)

    def figures(self) -> dict[str, Any]:
        """Flat figures for `result.json`: `kvd/base`, `fvd_floor`, and for differences `kvd/adapter-base`,
        `.../low`, `.../high`, `.../excludes_zero`."""
        flat: dict[str, Any] = {}
        for v in self.values:
            flat[f"{v.metric}/{v.arm}"] = v.value
            if v.floor:
                flat[f"{v.metric}_floor"] = v.floor.value  # of the real set: the same for every arm
        for c in self.comparisons:
            key = f"{c.metric}/{c.arm}-{c.baseline}"
            flat[key] = c.difference
            if c.interval:
                flat |= {f"{key}/low": c.interval.low, f"{key}/high": c.interval.high}
                flat[f"{key}/excludes_zero"] = c.excludes_zero
        return flat

    def table(self) -> str:
        """The record as text: values, differences, then warnings."""
        rows = [("metric", "arm", "value", "95 % interval", "n", "groups", "note")]
        for v in self.values:
            note = f"floor {v.floor.value:.4g} at n={v.floor.n}" if v.floor else ""
            note = "; ".join(part for part in (note, v.reason) if part)
            rows.append((v.metric, v.arm, _number(v.value), _span(v.interval), str(v.n), str(v.groups), note))
        for c in self.comparisons:
            note = c.reason or ("differs" if c.excludes_zero else "no difference shown")
            name = f"{c.arm} - {c.baseline}"
            rows.append((c.metric, name, _number(c.difference), _span(c.interval), str(c.n), str(c.groups), note))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths[:-1]) + "  ----")
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _span(interval: IntervalRecord | None) -> str:
    return "-" if interval is None else f"[{interval.low:.4g}, {interval.high:.4g}]"
