"""Checkpoints in a storage: a damaged one is found, and the one before it is used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.state import Saved


def saved(step: int) -> Saved:
    return Saved({"parameter/a": torch.full((64,), float(step))}, step, {"loss": 1 / step})


@pytest.fixture
def kept(tmp_path: Path) -> StoredCheckpoints:
    """Checkpoints of steps 2, 4 and 6, of which the newest two are kept."""
    checkpoints = StoredCheckpoints(Storage.open(tmp_path))
    for step in (2, 4, 6):
        checkpoints.save(saved(step))
    return checkpoints


def step_of(checkpoints: StoredCheckpoints) -> int | None:
    newest = checkpoints.latest()
    if newest is None:
        return None
    assert torch.equal(newest.tensors["parameter/a"], torch.full((64,), float(newest.step)))
    return newest.step


def test_the_newest_two_are_kept_and_nothing_else(kept: StoredCheckpoints, tmp_path: Path) -> None:
    assert kept.steps() == [6, 4]
    assert len(list(tmp_path.iterdir())) == 4
    newest = kept.latest()
    assert newest is not None
    assert newest.figures == {"loss": 1 / 6}


@pytest.mark.parametrize("damage", ["cut state", "changed state", "no state", "cut manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_is_used(
    kept: StoredCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    suffix = ".json" if "manifest" in damage else ".safetensors"
    (path,) = tmp_path.glob(f"step-00000006*{suffix}")
    content = path.read_bytes()
    if damage == "no state":
        path.unlink()
    elif damage == "changed state":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content[: len(content) // 2 if "cut" in damage else 0])
    with caplog.at_level(logging.WARNING, logger="cinesynth.train"):
        assert step_of(kept) == 4
    assert "checkpoint of step 6 is damaged" in caplog.text
    kept.save(saved(6))
    assert step_of(kept) == 6


def test_a_killed_writer_leaves_no_checkpoint_and_is_swept(kept: StoredCheckpoints, tmp_path: Path) -> None:
    save_file(saved(8).tensors, tmp_path / "step-00000008-0123456789ab.safetensors")
    (tmp_path / ".tmp-half").write_bytes(b"half")
    assert step_of(kept) == 6
    kept.save(saved(10))
    assert kept.steps() == [10, 6]
    assert len(list(tmp_path.iterdir())) == 4


def test_only_the_writer_writes(tmp_path: Path) -> None:
    other = StoredCheckpoints(Storage.open(tmp_path), writes=False)
    other.save(saved(1))
    assert step_of(other) is None


def test_checkpoints_of_0_1_0_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint_2026-01-0{step}"
        folder.mkdir()
        save_file(saved(step).tensors, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps({"schema": 1, "step": step, "figures": {}}))
    checkpoints = StoredCheckpoints(Storage.open(tmp_path))
    assert step_of(checkpoints) == 2
    (tmp_path / "checkpoint_2026-01-02" / "state.safetensors").write_bytes(b"cut")
    assert step_of(checkpoints) == 1
    checkpoints.save(saved(3))
    assert step_of(checkpoints) == 3
