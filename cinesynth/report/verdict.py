"""What the numbers allow to be said, in one sentence; never more than their intervals carry."""

from __future__ import annotations

from collections.abc import Iterable

from cinesynth.metrics.record import Comparison, MetricsRecord
from cinesynth.report.page import number, signed, span
from cinesynth.report.training import Training

_LABELS = {"fvd": "FVD", "kvd": "KVD", "lpips": "LPIPS", "lpips_late": "late LPIPS"}


def metric_label(metric: str) -> str:
    """A metric's name as people write it."""
    return _LABELS.get(metric, metric)


def verdict(training: Training | None, record: MetricsRecord | None) -> str:
    """One sentence: how the held-out loss went, and which differences between the arms are shown.

    Only an interval that excludes zero makes a difference; a metric without an interval decides nothing.
    """
    clauses = [_loss_clause(training)]
    clauses += ["nothing was evaluated"] if record is None else _comparison_clauses(record)
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def reading(comparison: Comparison) -> str:
    """What one comparison says."""
    if comparison.difference is None:
        return f"not available: {comparison.reason or 'no reason was recorded'}"
    if comparison.interval is None:
        return f"undecided: {comparison.reason or 'there is no interval'}"
    if not comparison.excludes_zero:
        return "not distinguishable from zero"
    closer = comparison.arm if comparison.difference < 0 else comparison.baseline
    return f"{closer} is closer to the real windows"


def _loss_clause(training: Training | None) -> str:
    if training is None:
        return "no adapter was trained"
    if len(training.held_out) < 2:
        return "no held-out loss was measured"
    first, last = training.held_out[0]["val_loss"], training.held_out[-1]["val_loss"]
    if number(first) == number(last):
        return f"held-out loss stayed at {number(first)}"
    change = signed(100 * (last / first - 1), 3)
    return f"held-out loss {'fell' if last < first else 'rose'} from {number(first)} to {number(last)} ({change} %)"


def _comparison_clauses(record: MetricsRecord) -> list[str]:
    clauses = []
    for arm in record.arms[1:]:
        found = [c for c in record.comparisons if c.arm == arm]
        tested = [c for c in found if c.difference is not None and c.interval is not None]
        better = [c for c in tested if c.excludes_zero and (c.difference or 0) < 0]
        worse = [c for c in tested if c.excludes_zero and (c.difference or 0) > 0]
        open_ = [c for c in tested if not c.excludes_zero]
        pair = f"the {arm}'s videos are {{}} the real ones than the {record.arms[0]}'s"
        if better:
            clauses.append(f"{pair.format('closer to')} by {_listed(better)}")
        if worse:
            clauses.append(f"{pair.format('further from')} by {_listed(worse)}")
        if open_:
            clauses.append(f"{arm} − {record.arms[0]} is not distinguishable from zero by {_listed(open_)}")
        if not tested:
            why = next((c.reason for c in found if c.reason), "no metric has an interval")
            clauses.append(f"nothing can be said of {arm} against {record.arms[0]}: {why}")
        if missing := [metric_label(v.metric) for v in record.values if v.arm == arm and v.value is None]:
            clauses.append(f"{_joined(missing)} could not be computed")
    return clauses or ["there is no second arm to compare"]


def _listed(comparisons: Iterable[Comparison]) -> str:
    return _joined([f"{metric_label(c.metric)} ({signed(c.difference)} {span(c.interval)})" for c in comparisons])


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
