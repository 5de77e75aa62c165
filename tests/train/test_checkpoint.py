"""Checkpoints in a storage: a damaged one is found, and the one before it is used."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cinesynth.errors import StorageError
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
        checkpoints.flush()
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
    kept.flush()
    assert step_of(kept) == 6


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_trained_again_after_damaged_checkpoints_is_kept_in_their_place(tmp_path: Path, keep: int) -> None:
    before = StoredCheckpoints(Storage.open(tmp_path), keep=keep)
    for step in (6, 8):
        before.save(saved(step))
    before.flush()
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"cut")
    checkpoints = StoredCheckpoints(Storage.open(tmp_path), keep=keep)
    assert step_of(checkpoints) is None
    for step in (2, 4):
        checkpoints.save(saved(step))
        checkpoints.flush()
        assert step_of(StoredCheckpoints(Storage.open(tmp_path))) == step
    assert checkpoints.steps() == [4, 2][:keep]
    for step in (6, 8):
        checkpoints.save(saved(step))
    checkpoints.flush()
    assert checkpoints.steps() == [8, 6][:keep]
    assert len(list(tmp_path.iterdir())) == 2 * keep


def test_a_damaged_checkpoint_that_is_still_to_validate_stays_and_takes_no_place(tmp_path: Path) -> None:
    before = StoredCheckpoints(Storage.open(tmp_path))
    for step in (2, 8):
        before.save(saved(step))
    before.flush()
    next(tmp_path.glob("step-00000008*.safetensors")).unlink()
    checkpoints = StoredCheckpoints(Storage.open(tmp_path), also_keep=lambda: {8})
    assert step_of(checkpoints) == 2
    checkpoints.save(saved(4))
    checkpoints.flush()
    assert checkpoints.steps() == [8, 4, 2]


def test_an_adapter_without_a_manifest_is_swept_and_those_with_one_stay(tmp_path: Path) -> None:
    def write_adapter(folder: Path, state: Saved) -> None:
        folder.mkdir()
        (folder / "weights").write_text(f"of step {state.step}")

    checkpoints = StoredCheckpoints(Storage.open(tmp_path), keep=2, write_adapter=write_adapter)
    checkpoints.save(saved(2))
    checkpoints.flush()
    orphans = [tmp_path / f"step-{step:08d}-0123456789ab" for step in (2, 3)]
    for orphan in [*orphans, tmp_path / "of-somebody-else"]:
        orphan.mkdir()
        (orphan / "weights").write_text("half")
    checkpoints.save(saved(4))
    checkpoints.flush()
    assert not any(orphan.exists() for orphan in orphans)
    assert {(path / "weights").read_text() for path in tmp_path.iterdir() if path.is_dir()} == {
        "of step 2",
        "of step 4",
        "half",
    }


def test_a_killed_writer_leaves_no_checkpoint_and_is_swept(kept: StoredCheckpoints, tmp_path: Path) -> None:
    save_file(saved(8).tensors, tmp_path / "step-00000008-0123456789ab.safetensors")
    (tmp_path / ".tmp-half").write_bytes(b"half")
    assert step_of(kept) == 6
    kept.save(saved(10))
    kept.flush()
    assert kept.steps() == [10, 6]
    assert len(list(tmp_path.iterdir())) == 4


def test_only_the_writer_writes(tmp_path: Path) -> None:
    other = StoredCheckpoints(Storage.open(tmp_path), writes=False)
    other.save(saved(1))
    other.flush()
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
    checkpoints.flush()
    assert step_of(checkpoints) == 3


def write_adapter(folder: Path, state: Saved) -> None:
    folder.mkdir()
    (folder / "weights").write_text(f"of step {state.step}")
    (folder / "card").write_text("{}")


def test_a_checkpoint_holds_its_adapter_and_a_damaged_one_is_found(tmp_path: Path) -> None:
    checkpoints = StoredCheckpoints(Storage.open(tmp_path / "kept"), keep=1, write_adapter=write_adapter)
    for step in (2, 4):
        checkpoints.save(saved(step))
    checkpoints.flush()
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()] == [
        path.stem for path in (tmp_path / "kept").glob("*.safetensors")
    ]
    assert (checkpoints.has_adapter(4), checkpoints.has_adapter(2)) == (True, False)
    adapter = checkpoints.adapter(4, tmp_path / "adapter")
    assert adapter is not None
    assert {path.name: path.read_text() for path in adapter.iterdir()} == {"weights": "of step 4", "card": "{}"}
    next((tmp_path / "kept").glob("step-*/weights")).write_text("of step 5")
    with pytest.raises(StorageError, match=r"weights has sha256 .* in place of"):
        checkpoints.adapter(4, tmp_path / "again")
    assert step_of(checkpoints) == 4
    assert StoredCheckpoints(Storage.open(tmp_path / "kept")).figures(4) == {"loss": 1 / 4}


def test_the_best_and_those_to_validate_are_kept_beside_the_newest(tmp_path: Path) -> None:
    wanted = {2, 3, 99}
    checkpoints = StoredCheckpoints(Storage.open(tmp_path), also_keep=lambda: wanted, write_adapter=write_adapter)
    for step in range(1, 7):
        checkpoints.save(saved(step))
    checkpoints.flush()
    assert checkpoints.steps() == [6, 5, 3, 2]
    wanted.remove(2)
    checkpoints.save(saved(7))
    checkpoints.flush()
    assert checkpoints.steps() == [7, 6, 3]
    assert len(list(tmp_path.iterdir())) == 9


def test_training_does_not_wait_for_a_checkpoint_but_for_the_one_before_it(tmp_path: Path) -> None:
    free, begun = threading.Event(), []

    def slow(folder: Path, state: Saved) -> None:
        begun.append(state.step)
        assert free.wait(30)
        write_adapter(folder, state)

    checkpoints = StoredCheckpoints(Storage.open(tmp_path), write_adapter=slow)
    checkpoints.save(saved(1))
    assert checkpoints.steps() == []
    second = threading.Thread(target=checkpoints.save, args=(saved(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert begun == [1]
    free.set()
    second.join(30)
    checkpoints.flush()
    assert (begun, checkpoints.steps()) == ([1, 2], [2, 1])


@pytest.mark.parametrize("then", ["save", "flush"])
def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path, then: str) -> None:
    def full(folder: Path, state: Saved) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = StoredCheckpoints(Storage.open(tmp_path), write_adapter=full)
    checkpoints.save(saved(3))
    with pytest.raises(StorageError, match=r"checkpoint of step 3 cannot be written to .*No space left.*make room"):
        checkpoints.flush() if then == "flush" else checkpoints.save(saved(4))
    assert checkpoints.steps() == []
