"""Where datasets and adapters lie that a configuration names."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import ConfigError
from cinesynth.registry import Registry
from cinesynth.runs import read_result
from cinesynth.storage import Storage
from cinesynth.wan.card import DIFFUSERS_FILE


def locate_dataset(storage: Storage, dataset: str) -> ClipsDataset:
    """Open a dataset by its name below `<storage>/datasets`, or by its location."""
    named = storage.child("datasets", dataset)
    return ClipsDataset.open(named if "/" not in dataset and named.exists() else Storage.open(dataset))


def locate_adapter(storage: Storage, ref: str, cache: Path | None = None) -> Path:
    """The local folder of an adapter given as a folder, a train run's name or `name@version` in the registry.

    Raises ConfigError for a run that made no adapter, StorageError for one that has not finished, and AdapterError for
    what is not published.
    """
    if Path(ref).expanduser().is_dir():
        return Path(ref).expanduser()
    cache = cache or Path(tempfile.gettempdir()) / "cinesynth-adapters"
    if "@" not in ref and storage.exists(f"runs/{ref}/result.json"):
        folder = run_output(storage, ref, "adapter")
        if folder is None:
            raise ConfigError(f"adapter {ref!r}: that run made no adapter")
        if folder.is_local:
            return Path(folder.path)
        return folder.download_folder("", cache / folder.sha256(DIFFUSERS_FILE))
    return Registry(storage).fetch(ref, cache)


def run_output(storage: Storage, run: str, name: str) -> Storage | None:
    """Where a complete run put its output `name`, as its result records; None when it made no such output.

    What lies below the run's folder is found there too after the whole storage was moved. Raises StorageError when the
    run has no result.
    """
    recorded = read_result(storage, run)["outputs"].get(name)
    if recorded is None:
        return None
    _, inside, rest = str(recorded).rpartition(f"/runs/{run}/")
    return storage.child("runs", run, *rest.split("/")) if inside else Storage.open(str(recorded))
