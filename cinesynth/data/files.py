"""The files of a dataset: what each source contains, by content, and what is written beside it.

A file whose size and time of change are known is not read again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.assemble import explain, withdrawn
from cinesynth.data.captions import Captions, ShotCaption, read_captions
from cinesynth.data.shards import read_table, write_table
from cinesynth.data.sources import Reject, Source, content_sha256, find_sources, fingerprint, recorded_uri, source_key
from cinesynth.errors import DatasetError, MediaError
from cinesynth.storage import Storage

_FILE_COLUMNS = ("uri", "size", "changed", "sha256")


@dataclass(frozen=True)
class File:
    """A source whose content and captions are known."""

    source: Source
    sha256: str
    captions: Captions


def read_files(config: PrepareConfig, dataset: Storage) -> tuple[list[File], list[Reject]]:
    """Readable sources with distinct content, in order of footage; a second one with the same content is a reject."""
    import ray

    known = _known_hashes(dataset)
    shared = ray.put(known)

    def read(row: dict[str, str]) -> dict[str, str]:
        location = row["location"]
        try:
            size, changed = fingerprint(location)
            before = ray.get(shared).get(recorded_uri(location))
            sha256 = before[2] if before is not None and before[:2] == (size, changed) else content_sha256(location)
            captions = json.dumps(asdict(read_captions(location)))
        except MediaError as e:
            return row | {"error": str(e), "found": ""}
        return row | {"error": "", "found": json.dumps([size, changed, sha256, captions])}

    sources, rejects = find_sources(config.footage)
    if not sources:
        where = ", ".join(source.path for source in config.footage)
        raise DatasetError(f"no video file in {where}" + (f": {explain(rejects)}" if rejects else ""))
    locations = sorted({source.location for source in sources})
    items = [{"location": name} for name in locations]
    data = ray.data.from_items(items, override_num_blocks=blocks_of(len(items)))
    found = {row["location"]: row for row in data.map(read).iter_rows()}
    read_ones = {name: json.loads(row["found"]) for name, row in sorted(found.items()) if row["found"]}
    hashes = {recorded_uri(name): (size, changed, sha256) for name, (size, changed, sha256, _) in read_ones.items()}
    if hashes != known:
        rows = [dict(zip(_FILE_COLUMNS, (name, *values), strict=True)) for name, values in hashes.items()]
        write_table(dataset, "files.parquet", pa.Table.from_pylist(rows))
    gone = withdrawn(dataset)
    first_with: dict[str, str] = {}
    files = []
    for source in sources:
        row = found[source.location]
        if row["error"]:
            rejects.append(Reject(source.uri, "unreadable", row["error"]))
            continue
        _, _, sha256, captions = read_ones[source.location]
        key = source_key(source, sha256)
        if sha256 in gone:
            rejects.append(Reject(source.uri, "withdrawn", f"on {gone[sha256]['at']}"))
        elif key in first_with:
            rejects.append(Reject(source.uri, "duplicate", f"same content as {first_with[key]}"))
        else:
            first_with[key] = source.uri
            files.append(File(source, sha256, _captions(json.loads(captions))))
    return files, rejects


def _known_hashes(dataset: Storage) -> dict[str, tuple[int, int, str]]:
    if not dataset.exists("files.parquet"):
        return {}
    rows = read_table(dataset, "files.parquet").to_pylist()
    return {row["uri"]: (row["size"], row["changed"], row["sha256"]) for row in rows}


def _captions(row: dict[str, Any]) -> Captions:
    return Captions(row["whole"], tuple(ShotCaption(**shot) for shot in row["shots"]), row["group"])


def blocks_of(items: int) -> int:
    """One file a block while files are few; a block of a large collection holds several."""
    return max(1, min(items, 1000))
