"""From files to a plan: scans, scores, captions, and which windows the dataset holds, in which group and split.

Scans and what models found are stored in parts as they are made, so that a kill costs seconds of them.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.annotate import Annotate, annotation_key, annotation_row
from cinesynth.data.assemble import SOURCE_SCHEMA, withdrawn, write_plan
from cinesynth.data.captions import with_trigger
from cinesynth.data.config import StageResources
from cinesynth.data.duplicates import near_duplicates
from cinesynth.data.encode import CACHE_GB, to_blocks, watched
from cinesynth.data.files import File, map_files
from cinesynth.data.plan import Assigned, assign, filter_windows
from cinesynth.data.progress import Progress, in_parts
from cinesynth.data.scan import SCAN_SCHEMA, SCAN_VERSION, Sample, Scan, from_row, timed_scan, to_row
from cinesynth.data.shards import read_table, write_table
from cinesynth.data.sources import Reject, local_file
from cinesynth.data.windows import Window, cut_windows, samples_between
from cinesynth.errors import AttemptFailed, MediaError
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger(__name__)

_SCANS = "scans"
_BLOCK_BYTES = 64e6  # of footage: a quarter of a minute of work at 5 Mbit/s


def plan_windows(
    config: PrepareConfig,
    dataset: Storage,
    identity: str,
    before: list[Window],
    files: list[File],
    encoded: Mapping[str, str],
) -> tuple[list[Window], list[Reject]]:
    """The windows of the dataset with group and split, stored as its plan: those it had, and those that are new.

    Args:
        config: of the run.
        dataset: holds and takes the scans, the annotations and the plan.
        identity: of the run, recorded in the plan.
        before: the plan that is stored.
        files: the footage.
        encoded: windows of `before` that are encoded, with the captions they are encoded with.
    """
    scans, rejects = _scans(config, dataset, files)
    windows: dict[str, Window] = {}
    for file in files:
        if (scan := scans.get(file.sha256)) is not None:
            found, left_out = cut_windows(file.source, file.sha256, file.stamp, scan, file.captions, config)
            rejects += left_out
            for window in found:
                windows.setdefault(window.window_id, window)
    _write_sources(dataset, files, scans)
    kept, more = filter_windows(windows.values(), config.filters)
    rejects += more
    kept, more = _annotated(config, dataset, kept)
    rejects += more
    kept, more = filter_windows(kept, config.filters)
    rejects += more
    kept = [replace(w, caption=with_trigger(w.caption or config.caption, config.trigger)) for w in kept]
    # What the footage no longer holds stays in the dataset: taking it out is a decision, see `withdraw`.
    gone, known = withdrawn(dataset), {w.window_id for w in kept}
    missing = [w for w in before if w.window_id not in known and w.source_sha256 not in gone]
    kept = [*(replace(w, caption=encoded[w.window_id]) for w in missing if w.window_id in encoded), *kept]
    detail = "its footage was removed, replaced or not readable before it was encoded"
    rejects += [Reject(w.source_uri, "gone", detail, w.window_id) for w in missing if w.window_id not in encoded]
    planned, more = assign(
        kept, _alike(config, scans, kept), config, {w.shot_id: Assigned(w.group, w.split) for w in before}
    )
    rejects += more
    write_plan(dataset, identity, planned)
    log.info("planned %d windows of %d files; %d rejects", len(planned), len(files), len(rejects))
    return planned, rejects


def _alike(config: PrepareConfig, scans: Scans, windows: list[Window]) -> list[tuple[str, str]]:
    """Pairs of shot ids whose windows show nearly the same."""
    if config.duplicates.action == "keep":
        return []
    spans: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)  # source to shot to what is used of it
    for w in windows:
        first, last = spans[w.source_sha256].get(w.shot_id, (w.frame_pts[0], w.frame_pts[-1]))
        spans[w.source_sha256][w.shot_id] = min(first, w.frame_pts[0]), max(last, w.frame_pts[-1])
    ids: list[str] = []
    samples: list[list[Sample]] = []
    for sha256, shots in spans.items():
        if (scan := scans.get(sha256)) is not None:
            ids += shots
            samples += [samples_between(scan, *span) for span in shots.values()]
    return [(ids[a], ids[b]) for a, b in near_duplicates(samples, config.duplicates)]


def _annotated(config: PrepareConfig, dataset: Storage, windows: list[Window]) -> tuple[list[Window], list[Reject]]:
    """Windows with the scores and captions that models give, made where they are not stored."""
    import ray

    key = annotation_key(config)
    if not key:
        return windows, []
    folder = f"annotations/{key}"
    wanted = {annotation_row(w): w for w in windows}
    found = {row["key"]: row for part in _stored(dataset, folder) for row in part.to_pylist()}
    missing = [w for name, w in wanted.items() if name not in found]
    if missing:
        resources = config.resources.models
        progress = Progress("annotate", config.name, len(missing), "windows")
        rows = ray.data.from_arrow(to_blocks(missing)).map_batches(
            Annotate,
            fn_constructor_args=(
                config.model_dump(mode="json", exclude={"name", "storage", "ray", "model"}),
                config.decode,
                device_of(resources),
            ),
            **actor_stage(resources),
        )
        for table in in_parts(rows, progress):
            if len(settled := table.filter(pa.compute.invert(table["again"]))):
                _store(dataset, folder, settled)
            found |= {row["key"]: row for row in table.to_pylist()}
    kept, rejects = [], []
    for name, window in wanted.items():
        row = found[name]
        if row["error"]:
            rejects.append(Reject(window.source_uri, row["reason"], row["error"], window.window_id))
        else:
            scores = window.scores | json.loads(row["scores"])
            kept.append(replace(window, scores=scores, caption=window.caption or row["caption"]))
    return kept, rejects


def _write_sources(dataset: Storage, files: list[File], scans: Scans) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        if file.sha256 not in rows and (scan := scans.get(file.sha256)) is not None:
            base, first, shots = scan.info.time_base, scan.pts[0], scan.shots()
            info = asdict(scan.info) | {"pixel_aspect": str(scan.info.pixel_aspect), "time_base": str(base)}
            seconds = float((shots[-1].end_pts - first) * base)
            rows[file.sha256] = {
                "uri": file.source.uri,
                "sha256": file.sha256,
                "domain": file.source.domain,
                "seconds": seconds,
                "frames": len(scan.pts),
                "info": json.dumps(info),
                "shots": [[float((p - first) * base) for p in (s.start_pts, s.end_pts)] for s in shots],
                "damaged_s": seconds * sum(scan.damaged) / len(scan.pts),
            }
    gone = withdrawn(dataset)
    if dataset.exists("sources.parquet"):  # what the footage no longer holds stays in the dataset
        for row in read_table(dataset, "sources.parquet").to_pylist():
            if row["sha256"] not in gone:
                rows.setdefault(row["sha256"], row)
    write_table(dataset, "sources.parquet", pa.Table.from_pylist(list(rows.values()), schema=SOURCE_SCHEMA))


class Scans:
    """The stored scans, by content; each is taken out of its table when it is asked for, as long films are large."""

    def __init__(self, dataset: Storage, settings: dict[str, Any]) -> None:
        self._dataset, self._settings = dataset, settings
        self._places: dict[str, tuple[pa.Table, int]] = {}
        for table in _stored(dataset, _SCANS):
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
        """Store scans, and the errors that no other attempt changes."""
        _store(self._dataset, _SCANS, table)
        self._add(table)

    def _add(self, table: pa.Table) -> None:
        self._places |= {key: (table, row) for row, key in enumerate(table["key"].to_pylist())}


def _scans(config: PrepareConfig, dataset: Storage, files: list[File]) -> tuple[Scans, list[Reject]]:
    """Scans of all contents, made where they are not stored; and what could not be scanned."""
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
            with local_file(location, sha256, (size, changed), decode.cache_gb * CACHE_GB) as path:
                found, cpu_s = watched(decode.limit_s).call(uri, timed_scan, path, shots)
        except MediaError as e:
            return to_row(row["key"], sha256, uri, str(e))
        except AttemptFailed as e:
            return to_row(row["key"], sha256, uri, str(e)) | {"again": True}
        return to_row(row["key"], sha256, uri, found, cpu_s)

    rejects: list[Reject] = []
    if missing:
        log.info("scanning %d of %d files", len(missing), len(by_content))
        progress = Progress("scan", config.name, len(missing), "files")
        rows = map_files(missing, [file.stamp[0] / _BLOCK_BYTES for file in wanted], scanned, SCAN_SCHEMA)
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


def _stored(dataset: Storage, folder: str) -> list[pa.Table]:
    """The parts in a folder, in the order in which they were stored."""
    return [read_table(dataset, name) for name in dataset.list(folder)]


def _store(dataset: Storage, folder: str, table: pa.Table) -> None:
    write_table(dataset, f"{folder}/{len(dataset.list(folder)):06d}.parquet", table)


def actor_stage(resources: StageResources) -> dict[str, Any]:
    """Arguments of `map_batches` for a stage of actors that takes whole blocks."""
    import ray

    return {
        "compute": ray.data.ActorPoolStrategy(size=resources.workers),
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "batch_format": "pyarrow",
        "batch_size": None,
    }


def device_of(resources: StageResources) -> str:
    return "cuda" if resources.gpus > 0 else "cpu"
