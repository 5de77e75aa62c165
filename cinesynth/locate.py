"""Where datasets and adapters lie that a configuration names."""

from __future__ import annotations

import difflib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import AdapterError, ConfigError, DatasetError
from cinesynth.registry import Registry
from cinesynth.runs import complete_result, read_result
from cinesynth.storage import Storage, scratch_folder, sha256_file
from cinesynth.wan.card import ADAPTER_FILES, DIFFUSERS_FILE, AdapterCard, read_card

log = logging.getLogger("cinesynth")


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
    """The local folder of an adapter given as a folder, a train run's name, `name@version` in the registry, or a LoRA
    file of another program.

    Raises ConfigError for a run that made no adapter, StorageError for one that has not finished, and AdapterError for
    what is no adapter folder and is not published.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    cache = cache or scratch_folder("adapters")
    if path.is_file():
        return _imported(path, cache)
    if _is_run(storage, ref):
        folder = run_output(storage, ref, "adapter")
        if folder is None:
            raise ConfigError(f"adapter {ref!r}: that run made no adapter")
        if folder.is_local:
            return Path(folder.path)
        return folder.download_folder("", cache / folder.sha256(DIFFUSERS_FILE))
    if ref.startswith((".", "~", "/")) or ref.count("/") > 1 or ref.endswith(".safetensors"):
        raise AdapterError(f"adapter {ref!r}: there is no such folder; give one, a train run's name or name@version")
    return Registry(storage).fetch(ref, cache)


def _imported(file: Path, cache: Path) -> Path:
    """The adapter folder of a LoRA file, made once for its content, and again where something took a part of it."""
    folder = cache / f"imported-{sha256_file(file)}"
    if not all((folder / name).is_file() for name in ADAPTER_FILES):
        from cinesynth.wan.formats import import_adapter  # loads PyTorch

        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / "adapter"
            import_adapter(file, made)
            folder.mkdir(exist_ok=True)
            # One by one, as the folder may be there: it lost some, or another process makes it.
            for name in ADAPTER_FILES:
                os.replace(made / name, folder / name)
        log.info("%s is read as an adapter; which base, data and steps it was trained with is not known", file)
    return folder


def pin_adapter(storage: Storage, ref: str) -> str:
    """The same adapter by a reference that cannot come to mean another one: an alias becomes its version.

    Raises AdapterError for what is not published.
    """
    if Path(ref).expanduser().exists():
        return str(Path(ref).expanduser().absolute())
    return ref if _is_run(storage, ref) else Registry(storage).resolve(ref).ref


def adapter_chain(storage: Storage, adapters: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """(reference, scale) of adapters in the order they are applied, each reference pinned.

    Where the first one was trained on top of others and they are not given, they are found in the storage by their
    hash and put before it.

    Raises AdapterError for an adapter that is not there, or whose parents are not.
    """
    chain = [(pin_adapter(storage, ref), scale) for ref, scale in adapters]
    if not chain:
        return []
    card = read_card(locate_adapter(storage, chain[0][0]))
    try:
        return adapters_below(chain[0][0], card, partial(find_adapter, storage)) + chain
    except AdapterError as e:
        raise AdapterError(
            f"{e}, which is neither a run nor published in {storage.uri}; give it before this one"
        ) from e


def adapters_below(ref: str, card: AdapterCard, find: Callable[[str], str | None]) -> list[tuple[str, float]]:
    """(reference, scale) of the adapters that `ref` was trained on top of, in the order they are applied.

    Raises AdapterError for one whose hash `find` does not know.
    """
    below = []
    for parent in card.parents:
        found = find(parent.sha256)
        if found is None:
            raise AdapterError(f"adapter {ref!r} was trained on top of another ({parent.sha256[:12]})")
        below.append((found, parent.scale))
    return below


def find_adapter(storage: Storage, sha256: str) -> str | None:
    """The reference of the adapter whose weights have this hash: a finished train run's name, or name@version."""
    for run in storage.folders("runs"):
        trained, finished = f"runs/{run}/trained.json", complete_result(storage.child("runs", run)) is not None
        if finished and storage.exists(trained) and storage.read_json(trained).get("adapter_sha256") == sha256:
            return run
    return Registry(storage).find(sha256)


def _is_run(storage: Storage, ref: str) -> bool:
    return "@" not in ref and "/" not in ref and storage.exists(f"runs/{ref}/run.json")


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
