"""What the numbers allow to be said, in one sentence; never more than their intervals carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from cinesynth.metrics import catalogue
from cinesynth.metrics.record import Comparison, MetricsRecord
from cinesynth.report.page import number, signed, span

if TYPE_CHECKING:
    from cinesynth.report.training import Training


def verdict(trainings: Sequence[tuple[str, Training]], record: MetricsRecord | None) -> str:
    """One sentence: how the held-out loss went in each stage, and what `evaluation_verdict` says."""
    clauses = [_loss_clause(training) for _, training in trainings] or ["no adapter was trained"]
    if len(trainings) > 1:
        clauses = [f"{stage}: {clause}" for (stage, _), clause in zip(trainings, clauses, strict=True)]
    return _sentence(clauses + (["nothing was evaluated"] if record is None else _comparison_clauses(record)))


def evaluation_verdict(record: MetricsRecord) -> str:
    """One sentence: which differences between the arms are shown.

    The primary metrics carry it. Only an interval that excludes zero makes a difference; a metric without an interval
    decides nothing. Where nothing is shown, it says how large a difference would have been.
    """
    return _sentence(_comparison_clauses(record))


def _sentence(clauses: Sequence[str]) -> str:
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def reading(record: MetricsRecord, comparison: Comparison) -> str:
    """What one comparison of a record says."""
    if comparison.difference is None:
        return f"not available: {comparison.reason or 'no reason was recorded'}"
    if comparison.interval is None:
        return f"undecided: {comparison.reason or 'there is no interval'}"
    better = record.better(comparison)
    if better is None:
        least = number(comparison.smallest_shown)
        return f"not distinguishable from zero; a difference of at least {least} would have been shown"
    return f"{better} is {'closer to the real windows' if _to_real(record, comparison) else 'better'}"


def left_out(counts: Mapping[str, int]) -> str:
    """How many videos of which arm a comparison does not take, in words."""
    return _joined([f"{count} of {arm}" for arm, count in counts.items()])


def _to_real(record: MetricsRecord, comparison: Comparison) -> bool:
    """Whether the metric measures against real videos, so that better means closer to them."""
    return bool({"real", "pair"} & set(record.definitions[comparison.metric].needs))


def _loss_clause(training: Training) -> str:
    if len(training.held_out) < 2:
        return "no held-out loss was measured"
    first, last = training.held_out[0]["val_loss"], training.held_out[-1]["val_loss"]
    if number(first) == number(last):
        return f"held-out loss stayed at {number(first)}"
    change = signed(100 * (last / first - 1), 3)
    return f"held-out loss {'fell' if last < first else 'rose'} from {number(first)} to {number(last)} ({change} %)"


def _comparison_clauses(record: MetricsRecord) -> list[str]:
    clauses = []
    primary = [name for name, definition in record.definitions.items() if definition.primary]
    if not primary:
        names = _joined([m.label for m in catalogue.METRICS.values() if m.primary])
        return [f"no primary metric ({names}) was computed: the others are shown, and decide nothing"]
    for arm in record.arms[1:]:
        found = [c for c in record.comparisons if c.arm == arm and c.metric in primary]
        tested = [c for c in found if c.difference is not None and c.interval is not None]
        clauses += _shown_clauses(record, arm, tested)
        if open_ := [c for c in tested if record.better(c) is None]:
            pair = f"{arm} − {record.arms[0]}"
            clauses.append(f"{pair} is not distinguishable from zero by {_listed(record, open_, least=True)}")
        if not tested:
            why = next((c.reason for c in found if c.reason), "no metric has an interval")
            clauses.append(f"nothing can be said of {arm} against {record.arms[0]}: {why}")
        missing = [v.metric for v in record.values if v.arm == arm and v.value is None and v.metric in primary]
        if missing:
            labels = _joined([record.definitions[name].label for name in missing])
            clauses.append(f"{labels} could not be computed")
    if len(record.arms) < 2:
        clauses += [*_value_clauses(record, primary), "there is no second arm to compare"]
    lost = {name: count for c in record.comparisons if c.metric in primary for name, count in c.left_out.items()}
    if lost:
        clauses.append(f"compared are the videos that all arms have, which leaves out {left_out(lost)}")
    return clauses or ["no two arms were compared"]


def _value_clauses(record: MetricsRecord, metrics: Sequence[str]) -> list[str]:
    """What the only arm is by some metrics."""
    told = [
        f"{record.definitions[v.metric].label} {number(v.value)}" + (f" {span(v.interval)}" if v.interval else "")
        for v in record.values
        if v.metric in metrics and v.value is not None
    ]
    return [f"{record.arms[0]} has {_joined(told)}"] if told else []


def _shown_clauses(record: MetricsRecord, arm: str, tested: list[Comparison]) -> list[str]:
    """What the intervals show of an arm, by what better means to the metric."""
    clauses = []
    for to_real, wins, words in (
        (True, True, "closer to the real ones than"),
        (False, True, "better than"),
        (True, False, "further from the real ones than"),
        (False, False, "worse than"),
    ):
        winner = arm if wins else record.arms[0]
        shown = [c for c in tested if record.better(c) == winner and _to_real(record, c) == to_real]
        if shown:
            clauses.append(f"the {arm}'s videos are {words} the {record.arms[0]}'s by {_listed(record, shown)}")
    return clauses


def _listed(record: MetricsRecord, comparisons: Iterable[Comparison], least: bool = False) -> str:
    """Metrics with their differences; with the least that would have been shown, if asked for."""
    told = []
    for c in comparisons:
        shown = f"; at least {number(c.smallest_shown)} would have been shown" if least else ""
        told.append(f"{record.definitions[c.metric].label} ({signed(c.difference)} {span(c.interval)}{shown})")
    return _joined(told)


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
