"""`python -m jobs.prepare --check DATASET`: compare a dataset with its manifest.

The check reads every byte: checksums of index, shards and embeddings; shapes, finiteness and hashes of every row;
splits, which must not divide a group; pixels of every held-out window.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cinesynth.data.dataset import ClipsDataset, WindowRow, pixels_file, row_sha256, table_of, tensor_from_columns
from cinesynth.data.encode.assemble import content_of, content_sha256
from cinesynth.data.encode.commits import Commits
from cinesynth.data.records import row_id, withdrawn
from cinesynth.errors import CinesynthError
from cinesynth.storage import Storage
from cinesynth.wan.family import Family

Shapes = dict[tuple[str, str], list[int]]
"""(bucket, tensor) to the shape in the first window of the bucket."""


@dataclass(frozen=True)
class Finding:
    """One fault of a dataset: where it is, and what is wrong."""

    where: str
    what: str


def check_dataset(location: Storage) -> tuple[dict[str, int], list[Finding]]:
    """Check the dataset at a location. Returns how many things of each kind were checked, and the faults.

    Raises DatasetError when there is no dataset, or when it is not complete.
    """
    dataset = ClipsDataset.open(location)
    counts: dict[str, int] = defaultdict(int)
    findings: list[Finding] = []
    try:
        windows = dataset.windows()
        dataset.empty_prompt_embeds()
        counts["index"] = 1
    except CinesynthError as e:
        return dict(counts), [Finding("index", str(e))]
    findings += _splits(dataset, windows)
    by_shard: dict[str, list[WindowRow]] = defaultdict(list)
    for window in windows:
        by_shard[window.shard].append(window)
    places = Commits(location).places()
    committed = {w.window_id: places[key] for w in windows if (key := row_id(w.window_id, w.caption)) in places}
    findings += _manifest(dataset, windows, committed)
    known = {entry["file"]: entry for entry in dataset.manifest["shards"]}
    shapes: Shapes = {}
    for name, rows in sorted(by_shard.items()):
        counts["shards"] += 1
        counts["windows"] += len(rows)
        findings += _shard(dataset, known.get(name), name, rows, committed, shapes)
    for window in windows:
        if window.split != "train":
            counts["pixels"] += 1
            findings += _pixels(location, window, committed)
    return dict(counts), findings


def _manifest(
    dataset: ClipsDataset, windows: list[WindowRow], committed: Mapping[str, Mapping[str, Any]]
) -> Iterator[Finding]:
    manifest = dataset.manifest
    content = [content_of(w, committed[w.window_id]) for w in windows if w.window_id in committed]
    found = content_sha256(manifest["encoder_hash"], manifest["empty_prompt"]["sha256"], content)
    if found != manifest["content_sha256"]:
        yield Finding(
            "manifest.json", f"content_sha256 is {manifest['content_sha256'][:12]}, the index has {found[:12]}"
        )
    for split, counts in manifest["splits"].items():
        if (count := sum(w.split == split for w in windows)) != counts["windows"]:
            yield Finding("manifest.json", f"says {counts['windows']} {split} windows, the index has {count}")


def _pixels(location: Storage, window: WindowRow, committed: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    name = pixels_file(window.window_id)
    if not location.exists(name):
        yield Finding(name, f"is missing ({window.split} window)")
    elif location.sha256(name) != committed.get(window.window_id, {}).get("pixels_sha256"):
        yield Finding(name, "is damaged: its sha256 is not that which was committed")


def _splits(dataset: ClipsDataset, windows: list[WindowRow]) -> Iterator[Finding]:
    groups: dict[str, set[str]] = defaultdict(set)
    gone = withdrawn(dataset.storage)
    for window in windows:
        groups[window.group].add(window.split)
        if window.source_sha256 in gone:
            yield Finding(window.window_id, f"is of a withdrawn source ({window.source_uri})")
    for group, splits in groups.items():
        if len(splits) > 1:
            yield Finding(f"group {group}", f"is divided between {', '.join(sorted(splits))}")
    ids = [window.window_id for window in windows]
    if len(ids) != len(set(ids)):
        yield Finding("index", f"{len(ids) - len(set(ids))} windows are there twice")


def _shard(
    dataset: ClipsDataset,
    entry: dict[str, Any] | None,
    name: str,
    windows: list[WindowRow],
    committed: Mapping[str, Mapping[str, Any]],
    shapes: Shapes,
) -> Iterator[Finding]:
    if entry is None:
        yield Finding(name, "is in the index, but not in the manifest")
        return
    try:
        data = dataset.storage.read_bytes(name)
    except (CinesynthError, OSError) as e:
        yield Finding(name, str(e))
        return
    if (found := hashlib.sha256(data).hexdigest()) != entry["sha256"]:
        yield Finding(name, f"is damaged: sha256 {found[:12]}, manifest {entry['sha256'][:12]}")
        return
    rows = table_of(data).to_pylist()
    for window in windows:
        where = f"{name} row {window.row}"
        row = rows[window.row] if window.row < len(rows) else {}
        if row.get("window_id") != window.window_id:
            yield Finding(where, f"holds another window than {window.window_id[:12]}")
            continue
        if row["encoder_hash"] != dataset.manifest["encoder_hash"]:
            yield Finding(where, "was encoded by other encoders")
        if row_sha256(row, dataset.family.tensors) != committed.get(window.window_id, {}).get("sha256"):
            yield Finding(where, "has other tensors than were committed")
        yield from _tensors(dataset.family, where, row, window, shapes)


def _tensors(family: Family, where: str, row: dict[str, Any], window: WindowRow, shapes: Shapes) -> Iterator[Finding]:
    for name in family.tensors:
        tensor = tensor_from_columns(row, name)
        shape = list(tensor.shape)
        if not tensor.isfinite().all():
            yield Finding(where, f"{name} has values that are not finite")
        if name == "prompt_embeds":
            shape = shape[1:]  # its length is that of the caption
        expected = shapes.setdefault((window.bucket, name), shape)
        if shape != expected:
            yield Finding(where, f"{name} has shape {shape}, others of {window.bucket} {expected}")
    expected = list(family.latent_shape(window.num_frames, window.height, window.width))
    for name in ("latents", "condition_latents"):
        shape = list(row[f"{name}_shape"])
        if shape != expected:
            yield Finding(where, f"{name} of shape {shape} are not those of a {window.bucket} window")
