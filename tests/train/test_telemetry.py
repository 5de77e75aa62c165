"""TensorBoard's files are read back as it reads them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from cinesynth.storage import Storage
from cinesynth.telemetry import SERIES, Telemetry
from cinesynth.train.telemetry import GroupGauges, StepGauges, write_scalars


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


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The series of the run "noir", without what they begin with."""
    found: dict[str, float] = {}

    def keep(self: Telemetry, name: str, value: float) -> None:
        assert self._labels == {"run": "noir"}
        assert name in SERIES
        found[name.removeprefix("cinesynth_train_")] = value

    monkeypatch.setattr(Telemetry, "set", keep)
    monkeypatch.setattr(Telemetry, "add", lambda self, name: keep(self, name, 1))
    return found


def test_a_step_shows_its_figures_in_base_units(shown: dict[str, float]) -> None:
    gauges = StepGauges("noir", steps=8)
    gauges.show({"step": 3, "time": 5.0, "val_set": "named", "val_loss": 0.25})
    assert shown == {"step": 3, "validation_loss": 0.25}
    gauges.show({"step": 3, "time": 5.5, "loss": 0.5, "lr": 1e-4, "mfu": 0.4, "peak_memory_gb": 2.0, "grad_norm": None})
    assert shown == {
        "step": 3,
        "validation_loss": 0.25,
        "loss": 0.5,
        "learning_rate": 1e-4,
        "mfu_ratio": 0.4,
        "peak_memory_bytes": 2e9,
        "steps_wanted": 8,
        "last_step_timestamp_seconds": 5.5,
    }


def test_a_group_counts_as_alive_from_its_start_and_as_over_however_it_ends(
    shown: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cinesynth.train.telemetry.time.time", lambda: 100.0)
    gauges = GroupGauges("noir")

    def lose() -> None:
        with gauges.training():
            assert shown == {"last_step_timestamp_seconds": 100.0, "running": 1}
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        lose()
    assert shown["running"] == 0
    gauges.failed()
    assert shown["restarts_total"] == 1
