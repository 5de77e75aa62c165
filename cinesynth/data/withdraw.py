"""Withdraw a source from a dataset, and list the adapters that were trained on it.

    python -m jobs.prepare --withdraw SOURCE --dataset /data/cinesynth/datasets/clips

A withdrawal is a small object that stays. The source's windows leave the index at once, its kept pixels are deleted,
and no later run of prepare takes the source in again. Shards are immutable: they keep its rows, but nothing refers to
them. Giving the command again finishes an interrupted withdrawal, and lists the adapters again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cinesynth.data.dataset import ClipsDataset, pixels_file
from cinesynth.data.encode.assemble import assemble, facts_of
from cinesynth.data.encode.commits import Commits
from cinesynth.data.records import Reject, read_plan, read_rejects, withdrawn
from cinesynth.errors import DatasetError
from cinesynth.locate import run_output
from cinesynth.report.dataset import write_dataset_page
from cinesynth.runs import complete_result
from cinesynth.storage import Storage

_REASON = "withdrawn"


@dataclass(frozen=True)
class Affected:
    """An adapter that was trained on a withdrawn source, or that builds on such an adapter."""

    where: str
    sha256: str
    through: str
    """`dataset`, or the sha256 of the parent."""


def withdraw(storage: Storage, name: str, source: str) -> tuple[dict[str, Any], list[Affected]]:
    """Withdraw a source, named by its uri or by its sha256 (or the start of it), from the dataset `name`.

    Returns the new manifest and the affected adapters of this storage. Raises DatasetError when there is no such
    dataset or source, or when nothing would be left.
    """
    dataset = storage.child("datasets", name)
    if not dataset.exists("manifest.json"):
        raise DatasetError(f"{dataset.uri} is no finished clips dataset; run prepare first")
    windows = ClipsDataset.open(dataset).windows()
    gone = withdrawn(dataset)
    sources = {w.source_sha256: w.source_uri for w in windows} | {sha256: at["uri"] for sha256, at in gone.items()}
    found = [(sha256, uri) for sha256, uri in sources.items() if _names(source, uri, sha256)]
    if len(found) != 1:
        what = "is no source of" if not found else f"names {len(found)} sources of"
        raise DatasetError(f"{source!r} {what} {dataset.uri}; give a uri or a sha256 from its sources.parquet")
    sha256, uri = found[0]
    if all(w.source_sha256 in {sha256, *gone} for w in windows):
        raise DatasetError(f"{uri} is all that {dataset.uri} holds: remove the dataset instead")
    if sha256 not in gone:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        dataset.write_json(f"withdrawn/{sha256}.json", {"sha256": sha256, "uri": uri, "at": now})
    of_it = {w.window_id for w in (*windows, *read_plan(dataset)) if w.source_sha256 == sha256}
    at = withdrawn(dataset)[sha256]["at"]
    rejects = [r for r in read_rejects(dataset) if r.window_id not in of_it and (r.source, r.reason) != (uri, _REASON)]
    rejects.append(Reject(uri, _REASON, f"on {at}"))
    # What a run that is not finished has planned or encoded beyond the published windows is left to it.
    facts = facts_of(dataset.read_json("manifest.json"))
    manifest = assemble(dataset, facts, windows, rejects, Commits(dataset), write_dataset_page)
    for window_id in sorted(of_it):
        dataset.delete(pixels_file(window_id))
    return manifest, affected_adapters(storage, dataset, sha256)


def affected_adapters(storage: Storage, dataset: Storage, source_sha256: str) -> list[Affected]:
    """Adapters in runs and registry that were trained on a content with this source, and all that build on them."""
    contents = {
        entry["content_sha256"]
        for name in dataset.list("history")
        for entry in [dataset.read_json(name)]
        if source_sha256 in entry["sources"]
    }
    cards = list(_cards(storage))
    through: dict[str, str] = {card["sha256"]: "dataset" for _, card in cards if card["dataset_sha256"] in contents}
    while more := {
        card["sha256"]: parent["sha256"]
        for _, card in cards
        for parent in card["parents"]
        if parent["sha256"] in through and card["sha256"] not in through
    }:
        through |= more
    return [
        Affected(where, card["sha256"], through[card["sha256"]]) for where, card in cards if card["sha256"] in through
    ]


def _cards(storage: Storage) -> list[tuple[str, dict[str, Any]]]:
    """(where, card) of every adapter in runs and registry."""
    made = [(f"runs/{run}/adapter", _adapter_of(storage, run)) for run in storage.folders("runs")]
    cards = [(where, folder.read_json("card.json")) for where, folder in made if folder and folder.exists("card.json")]
    published = [name for name in storage.list("registry", recursive=True) if name.endswith("/card.json")]
    return cards + [(name.removesuffix("/card.json"), storage.read_json(name)) for name in published]


def _adapter_of(storage: Storage, run: str) -> Storage | None:
    """The adapter that a run recorded; of a run that has not finished, what it has written so far."""
    if complete_result(storage.child("runs", run)) is None:
        return storage.child("runs", run, "adapter")
    return run_output(storage, run, "adapter")


def _names(given: str, uri: str, sha256: str) -> bool:
    return given == uri or (len(given) >= 8 and sha256.startswith(given))
