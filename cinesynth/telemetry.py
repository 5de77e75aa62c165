"""What a running cluster tells Prometheus: one table of series, and how they are emitted.

Ray exports them from each node under its prefix `ray_`. Names follow Prometheus: base units at the end (`_seconds`,
`_bytes`, `_ratio`), `_total` for what only grows. `cluster/monitoring` makes dashboards and alerts of the same table.
A gauge is gone about 20 seconds after the process that set it; a counter and a histogram stay for the node's life.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

RAY_PREFIX = "ray_"
_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
"""Buckets, in seconds, of what takes from under a second to hours."""


@dataclass(frozen=True)
class Series:
    """One metric.

    Attributes:
        name: without Ray's prefix.
        kind: `gauge`: set to a value; `counter`: only grows; `histogram`: how values are spread.
        told: what it is, for people.
        labels: that tell its lines apart, beside those that Ray adds (node, process, session).
        panel: title of the dashboard's panel that shows it.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    told: str
    labels: tuple[str, ...]
    panel: str
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name in Prometheus; of a histogram, what its `_bucket`, `_sum` and `_count` begin with."""
        return f"{RAY_PREFIX}{self.name}"

    @property
    def unit(self) -> str:
        """`seconds`, `timestamp` (seconds since 1970), `bytes`, `ratio` or, of a count or a bare number, ""."""
        words = self.name.removesuffix("_total").split("_")
        if words[-2:] == ["timestamp", "seconds"]:
            return "timestamp"
        return words[-1] if words[-1] in ("seconds", "bytes", "ratio") and "per" not in words else ""


_RUN, _STAGE, _STUDY = ("run",), ("run", "stage"), ("study",)

SERIES = {
    series.name: series
    for series in (
        # Training: the first worker of a run, and its driver.
        Series("cinesynth_train_step", "gauge", "optimiser steps done", _RUN, "Steps done"),
        Series("cinesynth_train_steps_wanted", "gauge", "optimiser steps of the whole run", _RUN, "Steps done"),
        Series("cinesynth_train_loss", "gauge", "training loss of the last step", _RUN, "Loss"),
        Series("cinesynth_train_validation_loss", "gauge", "held-out loss", _RUN, "Loss"),
        Series("cinesynth_train_learning_rate", "gauge", "learning rate of the last step", _RUN, "Learning rate"),
        Series("cinesynth_train_gradient_norm", "gauge", "norm before clipping", _RUN, "Gradient norm"),
        Series("cinesynth_train_step_seconds", "gauge", "what the last step took", _RUN, "Seconds a step"),
        Series("cinesynth_train_samples_per_second", "gauge", "windows, over all workers", _RUN, "Samples a second"),
        Series(
            "cinesynth_train_mfu_ratio",
            "gauge",
            "share of the devices' dense bf16 peak; only where it is known",
            _RUN,
            "Model FLOPs utilisation",
        ),
        Series("cinesynth_train_peak_memory_bytes", "gauge", "most of the first worker so far", _RUN, "Peak memory"),
        Series(
            "cinesynth_train_last_step_timestamp_seconds",
            "gauge",
            "when the last step ended, or the workers were started",
            _RUN,
            "Since the last step",
        ),
        Series("cinesynth_train_running", "gauge", "1 while workers are to train", _RUN, "Running"),
        Series("cinesynth_train_restarts_total", "counter", "worker groups that failed", _RUN, "Worker restarts"),
        # Preparing a dataset: its driver.
        Series("cinesynth_prepare_items", "gauge", "files or windows of a stage", _STAGE, "Items done"),
        Series("cinesynth_prepare_items_done", "gauge", "those that are finished", _STAGE, "Items done"),
        Series("cinesynth_prepare_items_failed", "gauge", "those that were rejected", _STAGE, "Items rejected"),
        Series("cinesynth_prepare_items_per_second", "gauge", "rate of a stage", _STAGE, "Items a second"),
        Series("cinesynth_prepare_remaining_seconds", "gauge", "left at this rate", _STAGE, "Time left"),
        Series("cinesynth_prepare_windows", "gauge", "windows that are planned", _RUN, "Windows planned"),
        Series(
            "cinesynth_prepare_rejects", "gauge", "files and windows, by reason", ("run", "reason"), "Rejects by reason"
        ),
        # A search: its driver.
        Series("cinesynth_tune_trials", "gauge", "that ended", ("study", "state"), "Trials"),
        Series("cinesynth_tune_trials_wanted", "gauge", "of the whole search", _STUDY, "Trials"),
        Series("cinesynth_tune_best", "gauge", "lowest value", ("study", "objective"), "Best value"),
        Series("cinesynth_tune_hypervolume", "gauge", "below the base model's values", _STUDY, "Hypervolume"),
        Series("cinesynth_tune_remaining_seconds", "gauge", "left at this rate", _STUDY, "Time left"),
        # The service: its Dispatcher.
        Series("cinesynth_serve_queued_videos", "gauge", "jobs in the queue", (), "Videos in the queue"),
        Series("cinesynth_serve_running_videos", "gauge", "jobs with an engine", (), "Videos in the queue"),
        Series("cinesynth_serve_oldest_wait_seconds", "gauge", "of the oldest queued job", (), "Longest wait"),
        Series("cinesynth_serve_backlog_seconds", "gauge", "predicted, for one engine", (), "Unfinished work"),
        Series("cinesynth_serve_engine_calls", "gauge", "engines that are asked for", (), "Engines asked for"),
        Series(
            "cinesynth_serve_queue_wait_seconds",
            "histogram",
            "till the first engine",
            (),
            "Wait in the queue",
            _S,
        ),
        Series("cinesynth_serve_engine_seconds", "histogram", "of a completed job", (), "Time to make", _S),
        Series(
            "cinesynth_serve_videos_total",
            "counter",
            "finished jobs; `reason` of a failed one is its error code",
            ("outcome", "reason"),
            "Videos finished",
        ),
        Series("cinesynth_serve_made_video_seconds_total", "counter", "of playing time", (), "Playing time made"),
        Series("cinesynth_serve_leases_lost_total", "counter", "attempts, by error code", ("reason",), "Leases lost"),
        Series(
            "cinesynth_serve_engine_restarts_total",
            "counter",
            "`part`: a group of processes made anew, or a replica that ended",
            ("part",),
            "Engine restarts",
        ),
    )
}
"""Name to series."""


class Telemetry:
    """Emits series of the table.

    Args:
        labels: values of labels that all series have that are emitted through this.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = labels

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        _instrument(name, "gauge").set(float(value), {**self._labels, **labels})

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Let a counter grow; by nothing where the amount is 0."""
        if amount > 0:
            _instrument(name, "counter").inc(amount, {**self._labels, **labels})

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        _instrument(name, "histogram").observe(max(float(value), 0.0), {**self._labels, **labels})


@lru_cache
def _instrument(name: str, kind: str) -> Any:
    """Ray's metric of a series; it is made once a process."""
    from ray.util import metrics

    series = SERIES[name]
    assert series.kind == kind, f"{name} is a {series.kind}"
    if kind == "histogram":
        return metrics.Histogram(name, series.told, list(series.buckets), series.labels)
    return (metrics.Gauge if kind == "gauge" else metrics.Counter)(name, series.told, series.labels)
