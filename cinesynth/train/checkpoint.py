"""Checkpoints of a training as objects of a storage: the state, the adapter beside it, and the manifest.

    step-00000250-<sha256 of the state>.safetensors    what training continues from
    step-00000250-<sha256 of the state>/               the adapter at that step, as generation takes it
    step-00000250.json                                 the manifest, which commits both

The manifest is written last and has the sha256 of every file, so that a cut or damaged one is found: the newest whole
one counts. What Ray Train holds as a checkpoint points to a manifest: whatever happens to it, the run continues from
here. A checkpoint is written in a thread, while training goes on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
        also_keep: asked after each checkpoint for the steps whose checkpoints are kept beside the newest.
        write_adapter: writes the adapter of a state to a local folder; default: a checkpoint has none.
    """

    def __init__(
        self,
        folder: Storage,
        writes: bool = True,
        keep: int = 2,
        also_keep: Callable[[], Collection[int]] = tuple,
        write_adapter: Callable[[Path, Saved], None] | None = None,
    ) -> None:
        self.folder, self.writes, self.keep = folder, writes, keep
        self.also_keep, self.write_adapter = also_keep, write_adapter
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writes-checkpoints")
        self._writing: Future[None] | None = None
        self._damaged: set[int] = set()

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
                self._damaged.add(step)
        return self._of_schema_1()

    def save(self, saved: Saved) -> None:
        """Write a checkpoint in a thread, once the one before it is written; and drop those that are not kept, and what
        killed writers left. Its tensors are not to be changed any more.

        Raises what went wrong with the one before it, as `flush` does.
        """
        if not self.writes:
            return
        self.flush()
        self._writing = self._thread.submit(self._write, saved)

    def flush(self) -> None:
        """Return once all is written. Raises StorageError where it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def adapter(self, step: int, local: Path) -> Path | None:
        """The adapter of a checkpoint, copied to a local folder that does not exist; None where it has none.

        Raises StorageError where it is not there, or damaged.
        """
        manifest = self._manifest(step)
        if "adapter" not in manifest:
            return None
        inside = self.folder.child(_adapter_of(step, manifest))
        for name, sha256 in manifest["adapter"].items():
            if (found := sha256_file(inside.download(name, local / name))) != sha256:
                raise StorageError(f"{inside.uri}/{name} has sha256 {found[:12]} in place of {sha256[:12]}")
        return local

    def has_adapter(self, step: int) -> bool:
        """Whether there is a manifest of this step that names an adapter."""
        try:
            return "adapter" in self._manifest(step)
        except (StorageError, KeyError):
            return False

    def figures(self, step: int) -> dict[str, float]:
        """Figures of a checkpoint's step."""
        return dict(self._manifest(step)["figures"])

    def _write(self, saved: Saved) -> None:
        try:
            with tempfile.TemporaryDirectory() as local:
                path = Path(local) / "state.safetensors"
                save_file(saved.tensors, path)
                manifest = {
                    "schema": SCHEMA,
                    "step": saved.step,
                    "figures": saved.figures,
                    "sha256": sha256_file(path),
                    "bytes": path.stat().st_size,
                }
                self.folder.upload(path, _state_of(saved.step, manifest))
                if self.write_adapter is not None:
                    adapter = Path(local) / "adapter"
                    self.write_adapter(adapter, saved)
                    self.folder.upload_folder(adapter, _adapter_of(saved.step, manifest))
                    manifest["adapter"] = {file.name: sha256_file(file) for file in sorted(adapter.iterdir())}
            self.folder.write_json(manifest_of(saved.step), manifest)
            self._damaged.discard(saved.step)
            self._sweep(saved.step)
        except (OSError, SafetensorError) as e:
            raise StorageError(
                f"the checkpoint of step {saved.step} cannot be written to {self.folder.uri}: {e}; make room or mend "
                "the storage, and give the command again: training goes on from the checkpoint before it"
            ) from e

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest: dict[str, Any] = self.folder.read_json(manifest_of(step))
        if manifest["schema"] != SCHEMA:
            raise StorageError(f"it has schema {manifest['schema']!r}, this version of cinesynth reads {SCHEMA}")
        return manifest

    def _read(self, step: int) -> Saved:
        manifest = self._manifest(step)
        with tempfile.TemporaryDirectory() as local:
            path = self.folder.download(_state_of(step, manifest), Path(local) / "state.safetensors")
            if (found := sha256_file(path)) != manifest["sha256"]:
                raise StorageError(f"sha256 {found[:12]} in place of {manifest['sha256'][:12]}")
            return Saved(load_file(path), step, manifest["figures"])

    def _sweep(self, written: int) -> None:
        """Drop what is not kept, now that step `written` is there. A state or an adapter without a manifest is of a
        writer that was killed."""
        steps = self.steps()
        # What `latest` found damaged is of later steps, which are trained again: it takes no place of a whole one.
        whole = [step for step in steps if step not in self._damaged]
        kept = {written, *whole[: self.keep], *self.also_keep()} & set(steps)
        files, folders = self.folder.list(), self.folder.folders()
        wanted = {manifest_of(step) for step in kept}
        for step in kept:
            try:
                manifest = self.folder.read_json(manifest_of(step))
                wanted |= {_state_of(step, manifest), _adapter_of(step, manifest)}
            except (StorageError, KeyError):  # a damaged manifest: whatever it meant stays
                wanted |= {name for name in [*files, *folders] if name.startswith(_stem(step))}
        # Manifests go first: one without its state would look damaged.
        for name in sorted(files, key=lambda name: not name.endswith(".json")):
            if name.startswith("step-") and name not in wanted:
                self.folder.delete(name)
        for name in folders:
            if name.startswith("step-") and name not in wanted:
                self.folder.delete_folder(name)
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


def manifest_of(step: int) -> str:
    """Name of the object that commits the checkpoint of a step."""
    return f"{_stem(step)}.json"


def _stem(step: int) -> str:
    return f"step-{step:08d}"


def _state_of(step: int, manifest: dict[str, Any]) -> str:
    """A writer that was killed and another that follows never write one object with two contents."""
    return f"{_adapter_of(step, manifest)}.safetensors"


def _adapter_of(step: int, manifest: dict[str, Any]) -> str:
    return f"{_stem(step)}-{manifest['sha256'][:12]}"
