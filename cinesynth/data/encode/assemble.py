"""Assemble a dataset: index, page and manifest are made of the stored plan, commits, sources and withdrawals.

The manifest is written last, in one piece, and the files it names are never overwritten. Until then readers see the
dataset as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from cinesynth.data.dataset import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    SPLITS,
    WindowFacts,
    read_table,
    row_sha256,
    table_bytes,
    window_columns,
    write_table,
)
from cinesynth.data.encode.commits import Commits
from cinesynth.data.records import (
    CAPTION_PLACES,
    Reject,
    caption_places,
    explain,
    prompt_file,
    reject_table,
    row_id,
    withdrawn,
)
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage, sha256_json


class WritePage(Protocol):
    """Writes the page of a dataset; takes the manifest, the windows, all rejects and the rows of the sources."""

    def __call__(
        self,
        dataset: Storage,
        manifest: dict[str, Any],
        windows: Sequence[WindowFacts],
        rejects: list[Reject],
        sources: list[dict[str, Any]],
    ) -> object: ...


def assemble(
    dataset: Storage,
    facts: dict[str, Any],
    planned: Iterable[WindowFacts],
    rejects: list[Reject],
    commits: Commits,
    write_page: WritePage,
) -> dict[str, Any]:
    """Write index, page, history and manifest; returns the manifest.

    Args:
        dataset: with stored sources.
        facts: how the dataset was made: name, model, family, encoder_hash, window, unmeasured,
            empty_prompt.
        planned: the windows of the dataset; those of withdrawn sources are left out here.
        rejects: everything that was left out.
        commits: of the dataset.
        write_page: called before the manifest is written.

    Raises DatasetError when no window is left, or when a planned window is neither encoded nor rejected.
    """
    gone = withdrawn(dataset)
    places = commits.places()
    planned = [w for w in planned if w.source_sha256 not in gone]
    kept = sorted(
        ((w, places[key]) for w in planned if (key := row_id(w.window_id, w.caption)) in places),
        key=lambda pair: pair[0].window_id,
    )
    windows = [window for window, _ in kept]
    if not windows:
        raise DatasetError(f"no window of {dataset.uri} is left: {explain(rejects)}")
    there = {window.window_id for window in windows}
    rejects = [reject for reject in rejects if reject.window_id not in there]
    lost = {w.window_id for w in planned} - there - {reject.window_id for reject in rejects}
    if lost:
        raise DatasetError(f"{dataset.uri}: {len(lost)} windows are neither encoded nor rejected, first {min(lost)}")
    sources = [row for row in read_table(dataset, "sources.parquet").to_pylist() if row["sha256"] not in gone]
    rows = [window_columns(w) | {key: place[key] for key in ("shard", "row")} for w, place in kept]
    index = _write_index(dataset, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    write_table(dataset, "rejected.parquet", reject_table(rejects))
    used = {place["shard"] for _, place in kept}
    caption_from = caption_places(dataset)
    captions = Counter(caption_from.get(row_id(w.window_id, w.caption), "unknown") for w in windows)
    empty = facts["empty_prompt"]
    content = [content_of(w, place) for w, place in kept]
    manifest = facts | {
        "schema": SCHEMA_VERSION,
        "kind": "clips",
        "windows": len(windows),
        "found_s": round(sum(row["seconds"] for row in sources), 2),
        "splits": {split: _counts(w for w in windows if w.split == split) for split in SPLITS},
        "domains": _counts_by(windows, "domain"),
        "buckets": _counts_by(windows, "bucket"),
        "captions": {place: captions[place] for place in CAPTION_PLACES if captions[place]},
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "index": index,
        "shards": [commit["shard"] for commit in commits if commit.get("shard", {}).get("file") in used],
        "withdrawn": sorted(gone),
        "content_sha256": content_sha256(facts["encoder_hash"], empty["sha256"], content),
    }
    history = {"content_sha256": manifest["content_sha256"], "sources": sorted({w.source_sha256 for w in windows})}
    dataset.write_json(f"history/{manifest['content_sha256']}.json", history)
    write_page(dataset, manifest, windows, rejects, sources)
    before = {dataset.read_json("manifest.json")["index"]["file"]} if dataset.exists("manifest.json") else set()
    dataset.write_json("manifest.json", manifest)
    for name in dataset.list("index"):  # a reader may have just read the manifest before this one
        if name not in before | {index["file"]}:
            dataset.delete(name)
    return manifest


def content_of(window: WindowFacts, place: Mapping[str, Any]) -> list[str]:
    """What of a window enters the identity of a dataset's content; `place` is its entry in `Commits.places`."""
    return [window.window_id, window.split, window.group, window.domain, window.caption, place["sha256"]]


def content_sha256(encoder_hash: str, empty_prompt_sha256: str, content: list[list[str]]) -> str:
    """Identity of a dataset's content: its windows, in the order of their ids, and the encoders."""
    return sha256_json([SCHEMA_VERSION, encoder_hash, empty_prompt_sha256, content])


def _write_index(dataset: Storage, table: pa.Table) -> dict[str, str]:
    data = table_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"index/{sha256}.parquet"
    dataset.write_bytes(name, data)
    return {"file": name, "sha256": sha256}


def _counts(windows: Iterable[WindowFacts]) -> dict[str, Any]:
    found = list(windows)
    seconds = sum(w.num_frames / w.fps for w in found)
    return {"windows": len(found), "groups": len({w.group for w in found}), "seconds": round(seconds, 2)}


def _counts_by(windows: Sequence[WindowFacts], name: str) -> dict[str, dict[str, Any]]:
    values = sorted({getattr(w, name) for w in windows})
    return {value: _counts(w for w in windows if getattr(w, name) == value) for value in values}


def empty_prompt_entry(dataset: Storage) -> dict[str, Any]:
    """The manifest's entry for the embedding of the empty caption."""
    name = prompt_file("")
    return {"file": name, "sha256": row_sha256(read_table(dataset, name).to_pylist()[0], ["prompt_embeds"])}


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that does not depend on which windows there are."""
    names = ("name", "model", "family", "encoder_hash", "window", "unmeasured", "empty_prompt")
    return json.loads(json.dumps({name: manifest[name] for name in names if name in manifest}))
