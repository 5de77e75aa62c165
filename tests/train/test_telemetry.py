"""TensorBoard's files are read back as it reads them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from cinesynth.storage import Storage
from cinesynth.train.telemetry import write_scalars


def records(path: Path) -> list[Event]:
    """The records of a TFRecord file: length, checksum, bytes, checksum."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_events_become_scalars_by_name_and_a_segment_that_is_written_again_replaces_itself(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"step": 3, "time": 5.0, "loss": 0.5, "loss_from_sigma": {"0": 0.25, "0.75": 1.0}},
        {"step": 4, "time": 6.0, "val_set": "named", "val_loss": 2.0, "val_loss/0.4": 4.0},
    ]
    run = Storage.open(tmp_path)
    for _ in range(2):
        write_scalars(run, "00000002", events)
    write_scalars(run, "00000004", [])
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name == "events.out.tfevents.00000002"
    head, *found = records(path)
    assert head.file_version == "brain.Event:2"
    scalars = [(e.step, e.wall_time, {v.tag: v.simple_value for v in e.summary.value}) for e in found]
    assert scalars == [
        (3, 5.0, {"train/loss": 0.5, "train/loss_from_sigma/0": 0.25, "train/loss_from_sigma/0.75": 1.0}),
        (4, 6.0, {"validation/val_loss": 2.0, "validation/val_loss/0.4": 4.0}),
    ]


def test_a_run_has_gauges_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import metrics

    from cinesynth.train.telemetry import Gauges

    shown: dict[str, tuple[float, dict[str, str]]] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            assert tag_keys == ("run",)
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            shown[self.name] = value, tags

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    Gauges("noir").show({"step": 3, "loss": 0.5, "lr": 1e-4, "val_set": "named", "mfu": None})
    tags = {"run": "noir"}
    assert shown == {
        "cinesynth_train_step": (3.0, tags),
        "cinesynth_train_loss": (0.5, tags),
        "cinesynth_train_lr": (1e-4, tags),
    }
