"""What a killed writer left of a checkpoint's adapter goes with the next checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.state import Saved


def write_adapter(folder: Path, state: Saved) -> None:
    folder.mkdir()
    (folder / "weights").write_text(f"of step {state.step}")


def test_an_adapter_without_a_manifest_is_swept_and_those_with_one_stay(tmp_path: Path) -> None:
    checkpoints = StoredCheckpoints(Storage.open(tmp_path), keep=2, write_adapter=write_adapter)

    def save(step: int) -> None:
        checkpoints.save(Saved({"parameter/a": torch.full((8,), float(step))}, step, {}))
        checkpoints.flush()

    save(2)
    orphans = [tmp_path / f"step-{step:08d}-0123456789ab" for step in (2, 3)]
    for orphan in [*orphans, tmp_path / "of-somebody-else"]:
        orphan.mkdir()
        (orphan / "weights").write_text("half")
    save(4)
    assert not any(orphan.exists() for orphan in orphans)
    assert {(path / "weights").read_text() for path in tmp_path.iterdir() if path.is_dir()} == {
        "of step 2",
        "of step 4",
        "half",
    }
