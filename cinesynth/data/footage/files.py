"""The files of a dataset: what each source contains, by content, and what is written beside it.

A file whose size and time of change are known is not read again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.dataset import read_table, write_table
from cinesynth.data.footage.captions import Captions, ShotCaption, read_captions
from cinesynth.data.footage.search import find_sources
from cinesynth.data.footage.sources import Source, content_sha256, fingerprint, source_key
from cinesynth.data.progress import Progress, in_parts
from cinesynth.data.records import Reject, Stamp, explain, withdrawn
from cinesynth.data.stages import map_files
from cinesynth.errors import DatasetError, MediaError
from cinesynth.storage import Storage, public_uri

_KNOWN = ("size", "changed", "sha256")
_BLOCK_FILES, _BLOCKS_PER_CPU, _BLOCKS = 64, 8, 10_000
_FOUND = pa.schema(
    [
        ("location", pa.string()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        ("sha256", pa.string()),
        ("captions", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class File:
    """A source whose content and captions are known."""

    source: Source
    sha256: str
    stamp: Stamp
    captions: Captions


def read_files(config: PrepareConfig, dataset: Storage) -> tuple[list[File], list[Reject]]:
    """Readable sources with distinct content, in order of footage; a second one with the same content is a reject."""
    known = _known_hashes(dataset)
    sources, rejects = find_sources(config.footage)
    if not sources:
        where = ", ".join(public_uri(source.path) for source in config.footage)
        raise DatasetError(f"no video file in {where}" + (f": {explain(rejects)}" if rejects else ""))
    locations = sorted({source.location for source in sources})
    before = [known.get(public_uri(name)) for name in locations]
    items = [{"location": name, "known": json.dumps(row)} for name, row in zip(locations, before, strict=True)]
    costs = [1.0 if row is None else 0.0 for row in before]  # their size is not known yet
    hashing = map_files(items, costs, lambda row: _read(row["location"], row["known"]), _FOUND)
    found: dict[str, dict[str, Any]] = {}
    hashes = dict(known)
    for table in in_parts(hashing, Progress("hash", config.name, len(items), "files")):
        found |= {row["location"]: row for row in table.to_pylist()}
        new = {public_uri(name): tuple(row[c] for c in _KNOWN) for name, row in found.items() if not row["error"]}
        if new.items() - hashes.items():
            hashes |= new
            rows = [dict(zip(("uri", *_KNOWN), (name, *values), strict=True)) for name, values in hashes.items()]
            write_table(dataset, "files.parquet", pa.Table.from_pylist(rows))
    gone = withdrawn(dataset)
    first_with: dict[str, str] = {}
    files = []
    for source in sources:
        row = found[source.location]
        if row["error"]:
            rejects.append(Reject(source.uri, "unreadable", row["error"]))
            continue
        sha256 = row["sha256"]
        key = source_key(source, sha256)
        if sha256 in gone:
            rejects.append(Reject(source.uri, "withdrawn", f"on {gone[sha256]['at']}"))
        elif key in first_with:
            rejects.append(Reject(source.uri, "duplicate", f"same content as {first_with[key]}"))
        else:
            first_with[key] = source.uri
            stamp = row["size"], row["changed"]
            files.append(File(source, sha256, stamp, _captions(json.loads(row["captions"]))))
    return files, rejects


def _read(location: str, known: str) -> dict[str, Any]:
    """A row of `_FOUND`; `known` is what files.parquet says, as JSON."""
    row: dict[str, Any] = {"location": location, "size": 0, "changed": 0, "sha256": "", "captions": "", "error": ""}
    try:
        size, changed = fingerprint(location)
        before = json.loads(known)
        sha256 = before[2] if before is not None and before[:2] == [size, changed] else content_sha256(location)
        captions = json.dumps(asdict(read_captions(location)))
    except MediaError as e:
        return row | {"error": str(e)}
    return row | {"size": size, "changed": changed, "sha256": sha256, "captions": captions}


def _known_hashes(dataset: Storage) -> dict[str, tuple[int, int, str]]:
    if not dataset.exists("files.parquet"):
        return {}
    rows = read_table(dataset, "files.parquet").to_pylist()
    return {row["uri"]: (row["size"], row["changed"], row["sha256"]) for row in rows}


def _captions(row: dict[str, Any]) -> Captions:
    return Captions(row["whole"], tuple(ShotCaption(**shot) for shot in row["shots"]), row["group"])
