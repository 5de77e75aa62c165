"""The files of a dataset: each source with the hash of its content and the captions beside it.

A file whose size and time of change are as before is not read again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.dataset import read_table, write_table
from cinesynth.data.footage.captions import Captions, ShotCaption, read_captions, split_location
from cinesynth.data.footage.folders import what_is_wrong
from cinesynth.data.footage.formats import holds_video, is_video_name
from cinesynth.data.footage.search import find_sources, written_by_jobs
from cinesynth.data.footage.sources import Source, below, content_sha256, fingerprint, is_remote, source_key
from cinesynth.data.progress import Progress, in_parts
from cinesynth.data.records import Reject, Stamp, explain, withdrawn
from cinesynth.data.stages import map_files
from cinesynth.errors import DatasetError, MediaError
from cinesynth.storage import Storage, public_uri

_KNOWN = ("size", "changed", "sha256")
_FOUND = pa.schema(
    [
        ("location", pa.string()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        ("sha256", pa.string()),
        ("captions", pa.string()),
        ("reason", pa.string()),
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
    """Readable sources with distinct content, in order of footage, and a reject for every other file.

    Raises DatasetError when there is no source.
    """
    sources, rejects = find_sources(config.footage, written_by_jobs(config.storage))
    if not sources:
        where = ", ".join(public_uri(source.path) for source in config.footage)
        raise DatasetError(f"no video file in {where}" + (f": {explain(rejects)}" if rejects else ""))
    found = _read_sources(config, dataset, sources)
    gone = withdrawn(dataset)
    first_with: dict[str, str] = {}
    files = []
    for source in sources:
        row = found[source.location]
        if row["error"]:
            rejects.append(Reject(source.uri, row["reason"], row["error"]))
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
    unused = {(below(split_location(f.source.uri)[0], name), what) for f in files for name, what in f.captions.unused}
    rejects += [Reject(uri, "unused", f"{what}; the video keeps the caption it has") for uri, what in sorted(unused)]
    return files, rejects


def _read_sources(config: PrepareConfig, dataset: Storage, sources: list[Source]) -> dict[str, dict[str, Any]]:
    """Location of each source to its row of `_FOUND`; the hashes are stored as they come."""
    known = _known_hashes(dataset)
    beside = {source.location: json.dumps(source.caption_files) for source in sources}
    locations = sorted(beside)
    before = [known.get(public_uri(name)) for name in locations]
    items = [
        {
            "location": name,
            "known": json.dumps(row),
            "caption_files": beside[name],
            "named": "video" if is_video_name(public_uri(name)) else "",
        }
        for name, row in zip(locations, before, strict=True)
    ]
    costs = [1.0 if row is None else 0.0 for row in before]  # their size is not known yet
    hashing = map_files(items, costs, _read, _FOUND, config.resources.readers())
    found: dict[str, dict[str, Any]] = {}
    hashes = dict(known)
    for table in in_parts(hashing, Progress("hash", config.name, len(items), "files")):
        found |= {row["location"]: row for row in table.to_pylist()}
        new = {public_uri(name): tuple(row[c] for c in _KNOWN) for name, row in found.items() if not row["error"]}
        if new.items() - hashes.items():
            hashes |= new
            rows = [dict(zip(("uri", *_KNOWN), (name, *values), strict=True)) for name, values in hashes.items()]
            write_table(dataset, "files.parquet", pa.Table.from_pylist(rows))
    return found


def _read(item: dict[str, str]) -> dict[str, Any]:
    """A row of `_FOUND`. A file that is no video is not read whole: it may have terabytes.

    `known` is what files.parquet says of the file, and `caption_files` what its folder holds, both as JSON; `named` is
    empty when the file is not named like video.
    """
    location = item["location"]
    row: dict[str, Any] = {"location": location, "size": 0, "changed": 0, "sha256": "", "captions": ""}
    try:
        if not is_remote(location) and (what := what_is_wrong(location)):  # to open a pipe would wait for ever
            raise MediaError(f"{location} {what}")
        size, changed = fingerprint(location)
        before = json.loads(item["known"])
        if before is not None and before[:2] == [size, changed]:
            sha256 = before[2]
        elif item["named"] or holds_video(location):
            sha256 = content_sha256(location)
        else:
            detail = f"{public_uri(location)} holds no moving pictures in a format that FFmpeg knows"
            return row | {"reason": "not_video", "error": detail}
        captions = json.dumps(asdict(read_captions(location, json.loads(item["caption_files"]))))
    except MediaError as e:
        return row | {"reason": "unreadable", "error": str(e)}
    return row | {"size": size, "changed": changed, "sha256": sha256, "captions": captions, "reason": "", "error": ""}


def _known_hashes(dataset: Storage) -> dict[str, tuple[int, int, str]]:
    if not dataset.exists("files.parquet"):
        return {}
    rows = read_table(dataset, "files.parquet").to_pylist()
    return {row["uri"]: (row["size"], row["changed"], row["sha256"]) for row in rows}


def _captions(row: dict[str, Any]) -> Captions:
    shots = tuple(ShotCaption(**shot) for shot in row["shots"])
    return Captions(row["whole"], shots, row["group"], row["whole_from"], tuple(map(tuple, row["unused"])))
