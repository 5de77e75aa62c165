"""Checkpoints of a training as objects of a storage: `<step>.safetensors`, and `<step>.json`, which commits it.

The manifest is written last and has the sha256 of the state, so that a cut or damaged one is found: the newest whole
one counts. Ray's own state of a training holds no checkpoint: whatever happens to it, the run continues from here.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cinesynth.errors import StorageError
from cinesynth.storage import Storage, sha256_file
from cinesynth.train.state import Saved

log = logging.getLogger("cinesynth.train")

SCHEMA = 2
"""Of the manifest. Checkpoints of schema 1 lay in folders of Ray Train; they are read, and no more written."""


class StoredCheckpoints:
    """The checkpoints in one folder of a storage.

    Args:
        folder: theirs alone, but for what runs of schema 1 left in it.
        writes: whether this process is the one that writes; the others' `save` does nothing.
        keep: newest ones that are kept.
    """

    def __init__(self, folder: Storage, writes: bool = True, keep: int = 2) -> None:
        self.folder, self.writes, self.keep = folder, writes, keep

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, newest first; damaged ones count."""
        names = [name for name in self.folder.list() if name.startswith("step-") and name.endswith(".json")]
        return sorted((int(name.removeprefix("step-").removesuffix(".json")) for name in names), reverse=True)

    def latest(self) -> Saved | None:
        """The newest checkpoint that is whole; damaged ones before it are said in the log."""
        for step in self.steps():
            try:
                return self._read(step)
            except (StorageError, SafetensorError, KeyError, OSError) as e:
                log.warning("checkpoint of step %d is damaged (%s); the one before it is used", step, e)
        return self._of_schema_1()

    def save(self, saved: Saved) -> None:
        """Write a checkpoint, and drop the oldest ones and what killed writers left."""
        if not self.writes:
            return
        with tempfile.TemporaryDirectory() as local:
            path = Path(local) / "state.safetensors"
            save_file(saved.tensors, path)
            sha256, size = sha256_file(path), path.stat().st_size
            self.folder.upload(path, f"{_stem(saved.step)}-{sha256[:12]}.safetensors")
        manifest = {"schema": SCHEMA, "step": saved.step, "figures": saved.figures, "sha256": sha256, "bytes": size}
        self.folder.write_json(f"{_stem(saved.step)}.json", manifest)
        self._sweep()

    def _read(self, step: int) -> Saved:
        manifest = self.folder.read_json(f"{_stem(step)}.json")
        if manifest["schema"] != SCHEMA:
            raise StorageError(f"it has schema {manifest['schema']!r}, this version of cinesynth reads {SCHEMA}")
        with tempfile.TemporaryDirectory() as local:
            path = self.folder.download(_state_of(step, manifest), Path(local) / "state.safetensors")
            if (found := sha256_file(path)) != manifest["sha256"]:
                raise StorageError(f"sha256 {found[:12]} in place of {manifest['sha256'][:12]}")
            return Saved(load_file(path), step, manifest["figures"])

    def _sweep(self) -> None:
        """Keep the newest checkpoints. A state without a manifest is of a writer that was killed."""
        kept = self.steps()[: self.keep]
        wanted = {f"{_stem(step)}.json" for step in kept}
        for step in kept:
            try:
                wanted.add(_state_of(step, self.folder.read_json(f"{_stem(step)}.json")))
            except (StorageError, KeyError):  # a damaged manifest: whatever it meant stays
                wanted |= {name for name in self.folder.list() if name.startswith(_stem(step))}
        # Manifests go first: one without its state would look damaged.
        for name in sorted(self.folder.list(), key=lambda name: not name.endswith(".json")):
            if name.startswith("step-") and name not in wanted:
                self.folder.delete(name)
        self.folder.sweep("")

    def _of_schema_1(self) -> Saved | None:
        """The newest checkpoint that Ray Train committed for a run of schema 1."""
        for name in sorted(self.folder.folders(), reverse=True):
            inside = self.folder.child(name)
            if not name.startswith("checkpoint_") or not inside.exists("state.json"):
                continue
            try:
                record = inside.read_json("state.json")
                with tempfile.TemporaryDirectory() as local:
                    path = inside.download("state.safetensors", Path(local) / "state.safetensors")
                    return Saved(load_file(path), record["step"], record["figures"])
            except (StorageError, SafetensorError, KeyError, OSError) as e:
                log.warning("checkpoint %s is damaged (%s); the one before it is used", name, e)
        return None


def _stem(step: int) -> str:
    return f"step-{step:08d}"


def _state_of(step: int, manifest: dict[str, str]) -> str:
    """A writer that was killed and another that follows never write one object with two contents."""
    return f"{_stem(step)}-{manifest['sha256'][:12]}.safetensors"
