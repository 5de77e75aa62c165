"""Put a dataset together from what is stored: plan, commits, sources and withdrawals to index, page and manifest.

The manifest is written last, and whole, and what it names is never overwritten: until then readers see the dataset as
it was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa

from cinesynth.data.commits import Commits, row_id
from cinesynth.data.encode import prompt_file
from cinesynth.data.shards import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    WINDOW_SCHEMA,
    WindowFacts,
    read_table,
    row_sha256,
    table_bytes,
    window_columns,
    write_table,
)
from cinesynth.data.sources import Reject
from cinesynth.data.windows import Window
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage, sha256_json

SPLITS = ("train", "val", "test")
PLAN_SCHEMA = pa.schema([*WINDOW_SCHEMA, ("frame_pts", pa.list_(pa.int64())), ("box", pa.list_(pa.float64()))])
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "reason", "detail", "window_id")])
SOURCE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("domain", pa.string()),
        ("seconds", pa.float64()),
        ("frames", pa.int64()),
        ("info", pa.string()),  # JSON of VideoInfo
        ("shots", pa.list_(pa.list_(pa.float64()))),  # (start, end) in seconds from the file's first frame
        ("damaged_s", pa.float64()),
    ]
)


def assemble(
    dataset: Storage, facts: dict[str, Any], planned: Iterable[WindowFacts], rejects: list[Reject], commits: Commits
) -> dict[str, Any]:
    """Write index, page, history and manifest; returns the manifest.

    Args:
        dataset: with stored sources.
        facts: what the manifest says of how it was made: name, model, encoder_hash, window, unmeasured.
        planned: the windows that count; those of a withdrawn source do not.
        rejects: everything that was left out.
        commits: of the dataset.

    Raises DatasetError when no window is left, or when one that counts is neither encoded nor rejected.
    """
    from cinesynth.report.dataset import write_dataset_page

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
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "index": index,
        "shards": [commit["shard"] for commit in commits if commit.get("shard", {}).get("file") in used],
        "withdrawn": sorted(gone),
        "content_sha256": content_sha256(facts["encoder_hash"], empty["sha256"], content),
    }
    history = {"content_sha256": manifest["content_sha256"], "sources": sorted({w.source_sha256 for w in windows})}
    dataset.write_json(f"history/{manifest['content_sha256']}.json", history)
    write_dataset_page(dataset, manifest, windows, rejects, sources)
    before = {dataset.read_json("manifest.json")["index"]["file"]} if dataset.exists("manifest.json") else set()
    dataset.write_json("manifest.json", manifest)
    for name in dataset.list("index"):  # a reader may have just read the manifest before this one
        if name not in before | {index["file"]}:
            dataset.delete(name)
    return manifest


def content_of(window: WindowFacts, place: Mapping[str, Any]) -> list[str]:
    """What of a window enters the identity of a dataset's content; `place` is that of `Commits.places`."""
    return [window.window_id, window.split, window.group, window.domain, window.caption, place["sha256"]]


def content_sha256(encoder_hash: str, empty_prompt_sha256: str, content: list[list[str]]) -> str:
    """Identity of a dataset's content: its windows, in the order of their ids, and how they were encoded."""
    return sha256_json([SCHEMA_VERSION, encoder_hash, empty_prompt_sha256, content])


def _write_index(dataset: Storage, table: pa.Table) -> dict[str, str]:
    data = table_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"index/{sha256}.parquet"
    dataset.write_bytes(name, data)
    return {"file": name, "sha256": sha256}


def write_plan(dataset: Storage, identity: str, windows: Iterable[Window]) -> None:
    """Store which windows the dataset holds, in which group and split."""
    rows = [window_columns(w) | {"frame_pts": w.frame_pts, "box": w.box} for w in windows]
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    write_table(dataset, "plan.parquet", table.replace_schema_metadata({_IDENTITY: identity.encode()}))


def read_plan(dataset: Storage, identity: str | None = None) -> list[Window]:
    """The stored plan; empty where there is none. Nothing can be decoded of it: locations are those that were recorded.

    Raises DatasetError when `identity` is given and the plan has another.
    """
    if not dataset.exists("plan.parquet"):
        return []
    table = read_table(dataset, "plan.parquet")
    if identity is not None and (table.schema.metadata or {}).get(_IDENTITY) != identity.encode():
        raise DatasetError(f"{dataset.uri} holds a dataset that another run made; use another name or remove it")
    names = [f.name for f in fields(WindowFacts)]
    return [
        Window(
            **{name: row[name] for name in names} | {"scores": dict(row["scores"])},
            location=row["source_uri"],
            stamp=(0, 0),
            frame_pts=tuple(row["frame_pts"]),
            box=tuple(row["box"]),
        )
        for row in table.to_pylist()
    ]


def withdrawn(dataset: Storage) -> dict[str, dict[str, Any]]:
    """sha256 of each withdrawn source to what was recorded of it."""
    return {entry["sha256"]: entry for name in dataset.list("withdrawn") for entry in [dataset.read_json(name)]}


def reject_table(rejects: list[Reject]) -> pa.Table:
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECT_SCHEMA)


def read_rejects(dataset: Storage) -> list[Reject]:
    return [Reject(**row) for row in read_table(dataset, "rejected.parquet").to_pylist()]


def explain(rejects: list[Reject]) -> str:
    """Counts of rejects by reason, and the first one in full."""
    counts = Counter(reject.reason for reject in rejects)
    first = f"; first: {rejects[0].source}: {rejects[0].detail}" if rejects else ""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) + first


_IDENTITY = b"cinesynth.identity"


def _counts(windows: Iterable[WindowFacts]) -> dict[str, Any]:
    found = list(windows)
    seconds = sum(w.num_frames / w.fps for w in found)
    return {"windows": len(found), "groups": len({w.group for w in found}), "seconds": round(seconds, 2)}


def _counts_by(windows: Sequence[WindowFacts], name: str) -> dict[str, dict[str, Any]]:
    values = sorted({getattr(w, name) for w in windows})
    return {value: _counts(w for w in windows if getattr(w, name) == value) for value in values}


def empty_prompt_entry(dataset: Storage) -> dict[str, Any]:
    """What a manifest records of the empty caption's embedding."""
    name = prompt_file("")
    return {"file": name, "sha256": row_sha256(read_table(dataset, name).to_pylist()[0], ["prompt_embeds"])}


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that does not depend on which windows there are."""
    names = ("name", "model", "encoder_hash", "window", "unmeasured", "empty_prompt")
    return json.loads(json.dumps({name: manifest[name] for name in names}))
