"""From files to a plan: scans, scores, captions, and which windows the dataset holds, in which group and split.

Scans and what models found are stored in parts as they are made, so that a kill costs seconds of them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.annotate import Annotate, annotation_key
from cinesynth.data.assemble import SOURCE_SCHEMA, withdrawn, write_plan
from cinesynth.data.captions import with_trigger
from cinesynth.data.config import StageResources
from cinesynth.data.duplicates import near_duplicates
from cinesynth.data.encode import to_blocks, watched
from cinesynth.data.files import File, blocks_of
from cinesynth.data.plan import Assigned, assign, filter_windows
from cinesynth.data.progress import Progress
from cinesynth.data.scan import SCAN_SCHEMA, SCAN_VERSION, Scan, from_row, timed_scan, to_row
from cinesynth.data.shards import read_table, write_table
from cinesynth.data.sources import Reject, local_copy
from cinesynth.data.windows import Window, cut_windows, shot_samples
from cinesynth.errors import MediaError
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger(__name__)

_STORE_S = 20.0
_CACHE_GB = 1e9


def plan_windows(
    config: PrepareConfig, dataset: Storage, identity: str, before: list[Window], files: list[File]
) -> tuple[list[Window], list[Reject]]:
    """The windows of the dataset with group and split, stored as its plan: those it had, and those that are new."""
    scans, rejects = _scans(config, dataset, files)
    windows: dict[str, Window] = {}
    for file in files:
        if file.sha256 in scans:
            found, left_out = cut_windows(file.source, file.sha256, scans[file.sha256], file.captions, config)
            rejects += left_out
            for window in found:
                windows.setdefault(window.window_id, window)
    _write_sources(dataset, files, scans)
    annotated, more = _annotated(config, dataset, list(windows.values()))
    rejects += more
    kept, more = filter_windows(annotated, config.filters)
    rejects += more
    kept = [replace(w, caption=with_trigger(w.caption or config.caption, config.trigger)) for w in kept]
    assigned, more = assign(
        kept, _alike(config, scans, kept), config, {w.shot_id: Assigned(w.group, w.split) for w in before}
    )
    rejects += more
    known = {w.window_id for w in assigned}
    # What the footage no longer holds stays in the dataset: taking it out is a decision, see `withdraw`.
    gone = withdrawn(dataset)
    planned = [*(w for w in before if w.window_id not in known and w.source_sha256 not in gone), *assigned]
    write_plan(dataset, identity, planned)
    log.info("planned %d windows of %d files; %d rejects", len(planned), len(files), len(rejects))
    return planned, rejects


def _alike(config: PrepareConfig, scans: dict[str, Scan], windows: list[Window]) -> list[tuple[str, str]]:
    """Pairs of shot ids that show nearly the same."""
    if config.duplicates.action == "keep":
        return []
    wanted = {w.shot_id: w.source_sha256 for w in windows}
    ids, samples = [], []
    for sha256 in dict.fromkeys(wanted.values()):
        for shot in scans[sha256].shots():
            if (shot_id := f"{sha256[:16]}-{shot.start_pts}") in wanted:
                ids.append(shot_id)
                samples.append(shot_samples(scans[sha256], shot))
    return [(ids[a], ids[b]) for a, b in near_duplicates(samples, config.duplicates)]


def _annotated(config: PrepareConfig, dataset: Storage, windows: list[Window]) -> tuple[list[Window], list[Reject]]:
    """Windows with the scores and captions that models give, made where they are not stored."""
    import ray

    key = annotation_key(config)
    if not key:
        return windows, []
    folder = f"annotations/{key}"
    stored = {name: (row["found"], row["error"]) for name, row in _stored(dataset, folder, "window_id").items()}
    missing = [w for w in windows if w.window_id not in stored]
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
        for table in _in_parts(rows, progress):
            _store(dataset, folder, table)
            stored |= {row["window_id"]: (row["found"], row["error"]) for row in table.to_pylist()}
    kept, rejects = [], []
    for window in windows:
        found, error = stored[window.window_id]
        if error:
            rejects.append(Reject(window.source_uri, "undecodable", error, window.window_id))
        else:
            found = json.loads(found)
            caption = window.caption or found.get("caption", "")
            kept.append(replace(window, scores=window.scores | found["scores"], caption=caption))
    return kept, rejects


def _write_sources(dataset: Storage, files: list[File], scans: dict[str, Scan]) -> None:
    rows = []
    for file in files:
        if (scan := scans.get(file.sha256)) is not None:
            base, first, shots = scan.info.time_base, scan.pts[0], scan.shots()
            info = asdict(scan.info) | {"pixel_aspect": str(scan.info.pixel_aspect), "time_base": str(base)}
            seconds = float((shots[-1].end_pts - first) * base)
            rows.append(
                {
                    "uri": file.source.uri,
                    "sha256": file.sha256,
                    "domain": file.source.domain,
                    "seconds": seconds,
                    "frames": len(scan.pts),
                    "info": json.dumps(info),
                    "shots": [[float((p - first) * base) for p in (s.start_pts, s.end_pts)] for s in shots],
                    "damaged_s": seconds * sum(scan.damaged) / len(scan.pts),
                }
            )
    known = {row["sha256"] for row in rows}
    if dataset.exists("sources.parquet"):  # what the footage no longer holds stays in the dataset
        rows += [row for row in read_table(dataset, "sources.parquet").to_pylist() if row["sha256"] not in known]
    write_table(dataset, "sources.parquet", pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA))


def _scans(config: PrepareConfig, dataset: Storage, files: list[File]) -> tuple[dict[str, Scan], list[Reject]]:
    """Scan of each content, made where it is not stored; and what could not be scanned."""
    import ray

    settings = config.shots.model_dump(mode="json")
    wanted = {sha256_json([SCAN_VERSION, f.sha256, settings]): f for f in reversed(files)}
    stored = _stored(dataset, "scans", "key")
    missing = [
        {"key": key, "file": json.dumps([f.sha256, f.source.location, f.source.uri])}
        for key, f in wanted.items()
        if key not in stored
    ]
    shots, decode = config.shots, config.decode

    def scanned(row: dict[str, str]) -> dict[str, Any]:
        sha256, location, uri = json.loads(row["file"])
        try:
            path = local_copy(location, sha256, decode.cache_gb * _CACHE_GB)
            found, cpu_s = watched(decode.limit_s).call(uri, timed_scan, path, shots)
        except MediaError as e:
            return to_row(row["key"], sha256, uri, str(e))
        return to_row(row["key"], sha256, uri, found, cpu_s)

    errors: dict[str, str] = {}
    if missing:
        log.info("scanning %d files (%d of %d are known)", len(missing), len(wanted) - len(missing), len(wanted))
        progress = Progress("scan", config.name, len(missing), "files")
        data = ray.data.from_items(missing, override_num_blocks=blocks_of(len(missing)))
        rows = data.map_batches(
            lambda batch: pa.Table.from_pylist([scanned(row) for row in batch.to_pylist()], schema=SCAN_SCHEMA),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=config.resources.decode,
        )
        for table in _in_parts(rows, progress):
            good = table.filter(pa.compute.equal(table["error"], ""))
            if len(good):
                _store(dataset, "scans", good)
            for row in table.to_pylist():
                stored[row["key"]] = row
                if row["error"]:
                    errors[row["key"]] = row["error"]
    scans = {f.sha256: scan for key, f in wanted.items() if (scan := from_row(stored[key])) is not None}
    return scans, [Reject(wanted[key].source.uri, "unreadable", error) for key, error in sorted(errors.items())]


def _in_parts(rows: Any, progress: Progress) -> Iterator[pa.Table]:
    """A graph's results (with a column `error`) as they come, put together for as long as `_STORE_S`."""
    waiting: list[pa.Table] = []
    since = time.monotonic()
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        progress.add(len(batch), errors=sum(bool(error) for error in batch["error"].to_pylist()))
        waiting.append(batch)
        if time.monotonic() - since > _STORE_S:
            yield pa.concat_tables(waiting)
            waiting, since = [], time.monotonic()
    if waiting:
        yield pa.concat_tables(waiting)


def _stored(dataset: Storage, folder: str, key: str) -> dict[str, dict[str, Any]]:
    """All rows of the parts in a folder."""
    parts = [read_table(dataset, name) for name in dataset.list(folder)]
    return {row[key]: row for part in parts for row in part.to_pylist()}


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
