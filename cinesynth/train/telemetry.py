"""What a training shows while it runs: series for Prometheus (`cinesynth/telemetry.py`), and TensorBoard's files.

    tensorboard/events.out.tfevents.00000250    the steps after step 250, up to the next checkpoint

There is a file for each segment of events, made of it, so that a run that was killed and continued has no step twice.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cinesynth.storage import Storage
from cinesynth.telemetry import Telemetry

_SHOWN = {
    "step": ("cinesynth_train_step", 1.0),
    "loss": ("cinesynth_train_loss", 1.0),
    "val_loss": ("cinesynth_train_validation_loss", 1.0),
    "lr": ("cinesynth_train_learning_rate", 1.0),
    "grad_norm": ("cinesynth_train_gradient_norm", 1.0),
    "step_seconds": ("cinesynth_train_step_seconds", 1.0),
    "samples_per_second": ("cinesynth_train_samples_per_second", 1.0),
    "mfu": ("cinesynth_train_mfu_ratio", 1.0),
    "peak_memory_gb": ("cinesynth_train_peak_memory_bytes", 1e9),
}
"""Figure of an event to its series, and what it is multiplied by."""


class StepGauges:
    """What the first worker of a run shows.

    Args:
        run: name of the run.
        steps: of the whole run.
    """

    def __init__(self, run: str, steps: int) -> None:
        self._telemetry, self._steps = Telemetry(run=run), steps

    def show(self, event: Mapping[str, Any]) -> None:
        """Show the figures that a step's or a validation's event names."""
        for name, (series, factor) in _SHOWN.items():
            if (value := event.get(name)) is not None:
                self._telemetry.set(series, factor * value)
        if "loss" in event:
            self._telemetry.set("cinesynth_train_steps_wanted", self._steps)
            self._telemetry.set("cinesynth_train_last_step_timestamp_seconds", event["time"])


class GroupGauges:
    """What the driver of a run shows: whether workers are to train, and how often they failed.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        self._telemetry = Telemetry(run=run)

    @contextmanager
    def training(self) -> Iterator[None]:
        """While the block runs, workers are to train. Its begin counts as a sign of life, as a step does."""
        self._telemetry.set("cinesynth_train_last_step_timestamp_seconds", time.time())
        self._telemetry.set("cinesynth_train_running", 1)
        try:
            yield
        finally:
            self._telemetry.set("cinesynth_train_running", 0)

    def failed(self) -> None:
        """Count a group that failed."""
        self._telemetry.add("cinesynth_train_restarts_total")


def write_scalars(run: Storage, name: str, events: Sequence[Mapping[str, Any]]) -> None:
    """Write events as one of TensorBoard's files into a run's folder.

    Args:
        run: the run's folder.
        name: of the file, unique in the run; TensorBoard reads files in the order of their names.
        events: with `step`, `time` (seconds since the epoch) and numbers under any other names. Of a mapping in them,
            each number is a scalar of its own.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    if not events:
        return
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / "events"
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=events[0]["time"], file_version="brain.Event:2").SerializeToString())
        for event in events:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(event)]
            record = Event(wall_time=event["time"], step=event["step"], summary=Summary(value=values))
            writer.write(record.SerializeToString())
        writer.close()
        run.upload(path, f"tensorboard/events.out.tfevents.{name}")


def _scalars(event: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for name, value in event.items():
        if name in ("step", "time"):
            continue
        kind = "validation" if name.startswith("val_") else "train"
        if isinstance(value, Mapping):
            found += [(f"{kind}/{name}/{part}", float(number)) for part, number in value.items()]
        elif isinstance(value, int | float):
            found.append((f"{kind}/{name}", float(value)))
    return found
