"""The metrics record, `metrics.json`: every number with its N, its interval and all that could change it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cinesynth.errors import StorageError
from cinesynth.metrics import statistics

SCHEMA = 3

Direction = Literal["lower", "higher", "match"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class IntervalRecord(_Part):
    """A confidence interval and how it was made."""

    low: float
    high: float
    level: float
    standard_error: float
    degrees_of_freedom: float = Field(description="Satterthwaite's where there are several strata")
    method: str = statistics.METHOD

    @classmethod
    def of(cls, interval: statistics.Interval) -> IntervalRecord:
        return cls(
            method=interval.method,
            low=interval.low,
            high=interval.high,
            level=interval.level,
            standard_error=interval.standard_error,
            degrees_of_freedom=interval.degrees_of_freedom,
        )


class Definition(_Part):
    """How a metric was computed; two numbers compare only where these are equal."""

    metric: str
    label: str = Field(description="the metric's name as people write it")
    version: int
    direction: Direction = Field(description="match: better is closer to the real set's own value")
    primary: bool = Field(description="carries the verdict")
    needs: list[str] = Field(description="of pair, caption, real: what it needs besides the arm's videos")
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
    """The metric between two halves of the real set that share no group, n videos each; and between the first half and
    n videos of the arm, those of the second half where it has them."""

    value: float
    n: int
    arm: float | None = None


class Value(_Part):
    """One metric of one arm against the real set."""

    metric: str
    arm: str
    value: float | None
    interval: IntervalRecord | None = None
    reason: str | None = Field(None, description="why there is no value, or no interval")
    real: float | None = Field(None, description="the same of the real set alone, where the metric has it")
    n_real: int
    n: int
    groups: int
    floor: Floor | None = None


class Comparison(_Part):
    """Difference of an arm and the baseline (the first arm), on the videos that all arms have.

    An arm that shares no video with the baseline is compared as an unpaired sample. Of a metric with the direction
    `match` it is the difference of the two distances to the real set's value.
    """

    metric: str
    arm: str
    baseline: str
    difference: float | None
    interval: IntervalRecord | None = None
    excludes_zero: bool | None = None
    reason: str | None = None
    n: int
    groups: int
    left_out: dict[str, int] = Field({}, description="arm to its videos that are not compared: not all arms have them")

    @property
    def smallest_shown(self) -> float | None:
        """The least difference, up or down, that an interval as wide as this one is sure to have shown."""
        if self.interval is None or self.difference is None:
            return None
        return max(self.difference - self.interval.low, self.interval.high - self.difference)

    @classmethod
    def of(
        cls,
        metric: str,
        arm: str,
        baseline: str,
        difference: float | None,
        *,
        interval: IntervalRecord | None,
        reason: str | None,
        n: int,
        groups: int,
        left_out: Mapping[str, int] | None = None,
    ) -> Comparison:
        """A difference with or without an interval; it excludes zero or not where there is one."""
        return cls(
            metric=metric,
            arm=arm,
            baseline=baseline,
            difference=difference,
            interval=interval,
            excludes_zero=None if interval is None else interval.low > 0 or interval.high < 0,
            reason=reason,
            n=n,
            groups=groups,
            left_out=dict(left_out or {}),
        )


class MetricsRecord(_Part):
    """Everything that an evaluation found. Arms are in the order given; the first is the baseline."""

    schema_: Literal[3] = Field(3, alias="schema")
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

    def better(self, comparison: Comparison) -> str | None:
        """The arm of the two that its interval shows to be better; None where it shows neither."""
        if comparison.difference is None or not comparison.excludes_zero:
            return None
        raised = comparison.difference > 0
        wins = raised if self.definitions[comparison.metric].direction == "higher" else not raised
        return comparison.arm if wins else comparison.baseline

    def label(self, metric: str) -> str:
        """A metric's name as people write it, marked where it is secondary."""
        definition = self.definitions.get(metric)
        if definition is None:
            return metric
        return definition.label if definition.primary else f"{definition.label} (secondary)"

    def _reading(self, comparison: Comparison) -> str:
        """The note of a difference in the table."""
        if comparison.reason:
            return comparison.reason
        if better := self.better(comparison):
            return f"{better} is better"
        return f"no difference shown; one of {_number(comparison.smallest_shown)} would have been"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, as `metrics.json` holds it."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def read(cls, path: str | Path) -> MetricsRecord:
        """Read `metrics.json`, of this schema or an older one. Raises StorageError when it is missing or of another."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as e:
            raise StorageError(f"{path} is not a readable metrics record: {e}") from e
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: Any, where: str) -> MetricsRecord:
        """Validate a record that was read; an older one is brought to this schema. Raises StorageError for another."""
        found = data.get("schema") if isinstance(data, dict) else None
        if found not in range(1, SCHEMA + 1):
            raise StorageError(
                f"{where}: metrics record of schema {found!r}, this version reads 1 to {SCHEMA}; evaluate again"
            )
        if found == 1:
            data = _from_schema_1(data)
        return cls.model_validate({**data, "schema": SCHEMA})  # schema 2 says nothing of what was left out

    def figures(self) -> dict[str, Any]:
        """Flat figures for `result.json`: `kvd/base`, `fvd_floor` and `fvd_at_floor/base`, and for differences
        `kvd/adapter-base`, `.../low`, `.../high`, `.../excludes_zero`, and `.../left_out/base` where videos were."""
        flat: dict[str, Any] = {}
        for v in self.values:
            flat[f"{v.metric}/{v.arm}"] = v.value
            if v.floor:
                flat[f"{v.metric}_floor"] = v.floor.value  # of the real set: the same for every arm
                flat[f"{v.metric}_at_floor/{v.arm}"] = v.floor.arm
        for c in self.comparisons:
            key = f"{c.metric}/{c.arm}-{c.baseline}"
            flat[key] = c.difference
            flat |= {f"{key}/left_out/{arm}": count for arm, count in c.left_out.items()}
            if c.interval:
                flat |= {f"{key}/low": c.interval.low, f"{key}/high": c.interval.high}
                flat[f"{key}/excludes_zero"] = c.excludes_zero
        return flat

    def table(self) -> str:
        """The record as text: values, differences, then warnings."""
        rows = [("metric", "arm", "value", "95 % interval", "n", "groups", "note")]
        for v in self.values:
            note = "; ".join(part for part in (_beside(v), v.reason) if part)
            cells = (_number(v.value), _span(v.interval), str(v.n), str(v.groups), note)
            rows.append((self.label(v.metric), v.arm, *cells))
        for c in self.comparisons:
            cells = (_number(c.difference), _span(c.interval), str(c.n), str(c.groups), self._reading(c))
            rows.append((self.label(c.metric), f"{c.arm} - {c.baseline}", *cells))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths[:-1]) + "  ----")
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])


def left_out_warnings(comparisons: Sequence[Comparison], definitions: Mapping[str, Definition]) -> list[str]:
    """What comparisons do not take of which arm, in words: one warning for all metrics that leave out the same."""
    alike: dict[tuple[int, tuple[tuple[str, int], ...]], list[str]] = {}
    for metric in dict.fromkeys(c.metric for c in comparisons):
        found = [c for c in comparisons if c.metric == metric]
        lost = {arm: count for c in found for arm, count in c.left_out.items()}
        if lost:
            kept = min(c.n for c in found if c.left_out)
            alike.setdefault((kept, tuple(lost.items())), []).append(definitions[metric].label)
    return [
        f"{', '.join(labels)}: arms are compared on the {kept} videos that all of them have; "
        f"left out: {', '.join(f'{count} of {arm}' for arm, count in lost)}"
        for (kept, lost), labels in alike.items()
    ]


# What records of schema 1 do not say of the metrics that they could hold: label, primary, needs. All are of direction
# `lower`.
_SCHEMA_1: dict[str, tuple[str, bool, list[str]]] = {
    "fvd": ("FVD", False, ["real"]),
    "kvd": ("KVD", True, ["real"]),
    "lpips": ("LPIPS", True, ["pair"]),
    "lpips_late": ("late LPIPS", False, ["pair"]),
}


def _from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    definitions = {}
    for name, definition in data["definitions"].items():
        label, primary, needs = _SCHEMA_1[name]
        definitions[name] = {**definition, "label": label, "primary": primary, "needs": needs, "direction": "lower"}
    warnings = list(data["warnings"])
    if "kvd" in definitions:
        warnings.append(
            "KVD of version 1 counts a video together with its own real one, and is too low; evaluate again"
        )
    return {**data, "definitions": definitions, "warnings": warnings}


def _beside(value: Value) -> str:
    parts = []
    if value.real is not None:
        parts.append(f"real {_number(value.real)}")
    if value.floor is not None:
        arm = "" if value.floor.arm is None else f"{_number(value.floor.arm)} at n={value.floor.n}, "
        parts.append(f"{arm}floor {_number(value.floor.value)} at n={value.floor.n}")
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _span(interval: IntervalRecord | None) -> str:
    return "-" if interval is None else f"[{interval.low:.4g}, {interval.high:.4g}]"
