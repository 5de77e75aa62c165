"""Where datasets and adapters lie that a configuration names."""

from __future__ import annotations

import difflib
from pathlib import Path

from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import ConfigError, DatasetError
from cinesynth.registry import Registry
from cinesynth.runs import read_result
from cinesynth.storage import Storage, scratch_folder
from cinesynth.wan.card import DIFFUSERS_FILE


def locate_dataset(storage: Storage, dataset: str) -> ClipsDataset:
    """Open a dataset by its name below `<storage>/datasets`, or by its location.

    Raises DatasetError, listing the names that there are, for a name that is none of them.
    """
    named = storage.child("datasets", dataset)
    if "/" not in dataset and named.exists():
        return ClipsDataset.open(named)
    if "/" not in dataset and not Path(dataset).is_dir():
        known = storage.folders("datasets")
        close = difflib.get_close_matches(dataset, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"there is no dataset {dataset!r} in {storage.uri}; {hint}there are: {', '.join(known) or 'none'}"
        )
    return ClipsDataset.open(Storage.open(dataset))


def locate_adapter(storage: Storage, ref: str, cache: Path | None = None) -> Path:
    """The local folder of an adapter given as a folder, a train run's name or `name@version` in the registry.

    Raises ConfigError for a run that made no adapter, StorageError for one that has not finished, and AdapterError for
    what is not published.
    """
    if Path(ref).expanduser().is_dir():
        return Path(ref).expanduser()
    cache = cache or scratch_folder("adapters")
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
