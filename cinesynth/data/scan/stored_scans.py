"""The scans of a dataset's files.

Missing ones are made on all CPUs and stored in parts as they are made, so that a kill costs seconds of work.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.dataset import read_parts, write_part
from cinesynth.data.footage.cache import local_file
from cinesynth.data.footage.files import File
from cinesynth.data.progress import Progress, in_parts
from cinesynth.data.records import Reject
from cinesynth.data.scan.scan import SCAN_SCHEMA, SCAN_VERSION, Scan, from_row, timed_scan, to_row
from cinesynth.data.scan.watch import watched
from cinesynth.data.stages import map_files
from cinesynth.errors import AttemptFailed, MediaError
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger(__name__)

_SCANS = "scans"
_BLOCK_BYTES = 64e6  # of footage in a block: about 15 s of work at 5 Mbit/s


class Scans:
    """The stored scans, by content. Each is read out of its table when it is asked for, as scans of films are large."""

    def __init__(self, dataset: Storage, settings: dict[str, Any]) -> None:
        self._dataset, self._settings = dataset, settings
        self._places: dict[str, tuple[pa.Table, int]] = {}
        for table in read_parts(dataset, _SCANS):
            self._add(table)

    def key(self, sha256: str) -> str:
        """Name of a scan: of this content, with these settings."""
        return sha256_json([SCAN_VERSION, sha256, self._settings])

    def __contains__(self, sha256: str) -> bool:
        return self.key(sha256) in self._places

    def get(self, sha256: str) -> Scan | None:
        """The scan of a content; None where there is none, or an error instead."""
        place = self._places.get(self.key(sha256))
        return from_row(place[0].slice(place[1], 1).to_pylist()[0]) if place is not None else None

    def error(self, sha256: str) -> str:
        """Why a content has no scan; empty where it has."""
        table, row = self._places[self.key(sha256)]
        return str(table["error"][row])

    def store(self, table: pa.Table) -> None:
        """Store scans, and errors that every other attempt would give, too."""
        write_part(self._dataset, _SCANS, table)
        self._add(table)

    def _add(self, table: pa.Table) -> None:
        self._places |= {key: (table, row) for row, key in enumerate(table["key"].to_pylist())}


def scan_files(config: PrepareConfig, dataset: Storage, files: list[File]) -> tuple[Scans, list[Reject]]:
    """Make the scans that are not stored. Returns those of all contents, and what could not be scanned."""
    scans = Scans(dataset, config.shots.model_dump(mode="json"))
    by_content = {file.sha256: file for file in reversed(files)}
    wanted = [file for sha256, file in by_content.items() if sha256 not in scans]
    missing = [
        {"key": scans.key(f.sha256), "file": json.dumps([f.sha256, f.stamp, f.source.location, f.source.uri])}
        for f in wanted
    ]
    shots, decode = config.shots, config.decode

    def scanned(row: dict[str, str]) -> dict[str, Any]:
        sha256, (size, changed), location, uri = json.loads(row["file"])
        try:
            with local_file(location, sha256, (size, changed), decode.cache_bytes) as path:
                found, cpu_s = watched(decode.limit_s, timed_scan.__module__).call(uri, timed_scan, path, shots)
        except MediaError as e:
            return to_row(row["key"], sha256, uri, str(e))
        except AttemptFailed as e:
            return to_row(row["key"], sha256, uri, str(e)) | {"again": True}
        return to_row(row["key"], sha256, uri, found, cpu_s)

    rejects: list[Reject] = []
    if missing:
        log.info("scanning %d of %d files", len(missing), len(by_content))
        progress = Progress("scan", config.name, len(missing), "files")
        costs = [file.stamp[0] / _BLOCK_BYTES for file in wanted]
        rows = map_files(missing, costs, scanned, SCAN_SCHEMA, config.resources.readers())
        for table in in_parts(rows, progress):
            failed = table.filter(table["again"]).to_pylist()
            rejects += [Reject(row["uri"], "decode_failed", row["error"]) for row in failed]
            if len(failed) < len(table):
                scans.store(table.filter(pa.compute.invert(table["again"])))
    rejects += [
        Reject(file.source.uri, "unreadable", error)
        for sha256, file in by_content.items()
        if sha256 in scans and (error := scans.error(sha256))
    ]
    return scans, sorted(rejects, key=lambda reject: reject.source)
