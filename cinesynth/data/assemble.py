"""Put a dataset together from what is stored: plan, commits, sources and withdrawals to index, page and manifest.

The manifest is written last, and whole: until then readers see the dataset as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa

from cinesynth.data.commits import Commits, row_id
from cinesynth.data.shards import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    WINDOW_SCHEMA,
    WindowFacts,
    read_table,
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


def assemble(dataset: Storage, facts: dict[str, Any], rejects: list[Reject], commits: Commits) -> dict[str, Any]:
    """Write index, page, history and manifest; returns the manifest.

    Args:
        dataset: with a stored plan and sources.
        facts: what the manifest says of how it was made: name, model, encoder_hash, window, unmeasured.
        rejects: everything that was left out.
        commits: of the dataset.

    Raises DatasetError when no window is left.
    """
    from cinesynth.report.dataset import write_dataset_page

    gone = withdrawn(dataset)
    places = commits.places()
    planned = [w for w in read_plan(dataset) if w.source_sha256 not in gone]
    kept = sorted(
        ((w, places[key]) for w in planned if (key := row_id(w.window_id, w.caption)) in places),
        key=lambda pair: pair[0].window_id,
    )
    windows = [window for window, _ in kept]
    if not windows:
        raise DatasetError(f"no window of {dataset.uri} is left: {explain(rejects)}")
    lost = len(planned) - len(windows) - len({r.window_id for r in rejects} & {w.window_id for w in planned})
    assert lost == 0, f"{lost} windows are neither encoded nor rejected"
    rows = [window_columns(w) | {key: place[key] for key in ("shard", "row")} for w, place in kept]
    write_table(dataset, "index.parquet", pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    write_table(dataset, "rejected.parquet", reject_table(rejects))
    used = {place["shard"] for _, place in kept}
    empty = facts["empty_prompt"]
    content = [[w.window_id, w.split, w.group, w.domain, w.caption, place["sha256"]] for w, place in kept]
    manifest = facts | {
        "schema": SCHEMA_VERSION,
        "kind": "clips",
        "windows": len(windows),
        "splits": {split: _counts(w for w in windows if w.split == split) for split in SPLITS},
        "domains": _counts_by(windows, "domain"),
        "buckets": _counts_by(windows, "bucket"),
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "index": {"file": "index.parquet", "sha256": _sha256(dataset, "index.parquet")},
        "shards": [commit["shard"] for commit in commits if commit.get("shard", {}).get("file") in used],
        "withdrawn": sorted(gone),
        "content_sha256": sha256_json([SCHEMA_VERSION, facts["encoder_hash"], empty["sha256"], content]),
    }
    history = {"content_sha256": manifest["content_sha256"], "sources": sorted({w.source_sha256 for w in windows})}
    dataset.write_json(f"history/{manifest['content_sha256']}.json", history)
    write_dataset_page(dataset, manifest, windows, rejects, read_table(dataset, "sources.parquet").to_pylist())
    dataset.write_json("manifest.json", manifest)
    return manifest


def write_plan(dataset: Storage, identity: str, windows: Iterable[Window]) -> None:
    """Store which windows the dataset holds, in which group and split."""
    rows = [window_columns(w) | {"frame_pts": w.frame_pts, "box": w.box} for w in windows]
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    write_table(dataset, "plan.parquet", table.replace_schema_metadata({_IDENTITY: identity.encode()}))


def read_plan(dataset: Storage, identity: str | None = None) -> list[Window]:
    """The stored plan; empty where there is none. Locations are those that were recorded.

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


def _counts(windows: Iterable[Window]) -> dict[str, Any]:
    found = list(windows)
    seconds = sum(w.num_frames / w.fps for w in found)
    return {"windows": len(found), "groups": len({w.group for w in found}), "seconds": round(seconds, 2)}


def _counts_by(windows: list[Window], name: str) -> dict[str, dict[str, Any]]:
    values = sorted({getattr(w, name) for w in windows})
    return {value: _counts(w for w in windows if getattr(w, name) == value) for value in values}


def _sha256(dataset: Storage, name: str) -> str:
    return hashlib.sha256(dataset.read_bytes(name)).hexdigest()


def empty_prompt_entry(dataset: Storage, part: str, caption_sha256: str) -> dict[str, Any]:
    """What a manifest records of the empty caption's embedding."""
    return {"file": part, "sha256": _sha256(dataset, part), "caption_sha256": caption_sha256}


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that does not depend on which windows there are."""
    names = ("name", "model", "encoder_hash", "window", "unmeasured", "empty_prompt", "found_s")
    return json.loads(json.dumps({name: manifest[name] for name in names}))
