"""What a training shows while it runs: gauges for Prometheus (Ray exports them), and TensorBoard's files.

    tensorboard/events.out.tfevents.00000250    the steps after step 250, up to the next checkpoint

There is a file for each segment of events, made of it, so that a run that was killed and continued has no step twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinesynth.storage import Storage

GAUGES = {
    "step": "optimiser steps done",
    "loss": "training loss of the last step",
    "lr": "learning rate of the last step",
    "grad_norm": "norm of the gradient before clipping",
    "step_seconds": "seconds of the last step",
    "samples_per_second": "windows a second, over all workers",
    "mfu": "share of the devices' dense bf16 peak; only where it is known",
    "peak_memory_gb": "most memory of the first worker so far, in GB",
    "val_loss": "held-out loss",
}
"""Names, without `cinesynth_train_`, and meanings."""


class Gauges:
    """A run's gauges `cinesynth_train_*`, each with the run's name as the tag `run`.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(f"cinesynth_train_{name}", told, ("run",)) for name, told in GAUGES.items()}
        self._tags = {"run": run}

    def show(self, figures: Mapping[str, Any]) -> None:
        """Set those that the figures name."""
        for name, gauge in self._gauges.items():
            value = figures.get(name)
            if value is not None:
                gauge.set(float(value), self._tags)


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
