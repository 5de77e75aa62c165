"""From scans to a plan: which windows a dataset holds, in which group and split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.dataset import read_table, write_table
from cinesynth.data.footage.captions import with_trigger
from cinesynth.data.footage.files import File
from cinesynth.data.plan.assign import Assigned, assign
from cinesynth.data.plan.duplicates import near_duplicates
from cinesynth.data.plan.windows import cut_windows, samples_between
from cinesynth.data.records import Reject, Window, withdrawn
from cinesynth.data.scan.scan import FrameScores
from cinesynth.data.scan.stored_scans import Scans
from cinesynth.storage import Storage

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


def cut_files(config: PrepareConfig, files: list[File], scans: Scans) -> tuple[list[Window], list[Reject]]:
    """All windows of the files that could be scanned, each once, and what was left out of these files."""
    windows: dict[str, Window] = {}
    rejects: list[Reject] = []
    for file in files:
        if (scan := scans.get(file.sha256)) is not None:
            found, left_out = cut_windows(file.source, file.sha256, file.stamp, scan, file.captions, config)
            rejects += left_out
            for window in found:
                windows.setdefault(window.window_id, window)
    return list(windows.values()), rejects


def settle_windows(
    config: PrepareConfig,
    scans: Scans,
    found: list[Window],
    before: list[Window],
    encoded: Mapping[str, str],
    gone: Collection[str],
) -> tuple[list[Window], list[Reject]]:
    """The windows of the dataset with caption, group and split: those that were found, and those that it had.

    Args:
        config: of the run.
        scans: of the footage.
        found: windows of the footage that passed the filters.
        before: the stored plan.
        encoded: windows of `before` that are encoded, with the captions they are encoded with.
        gone: sha256 of withdrawn sources.
    """
    kept = [
        replace(
            w,
            caption=with_trigger(w.caption or config.caption, config.trigger),
            caption_from=w.caption_from if w.caption else "default",
        )
        for w in found
    ]
    # What the footage no longer holds stays in the dataset: taking it out is a decision, see `withdraw`.
    known = {w.window_id for w in kept}
    missing = [w for w in before if w.window_id not in known and w.source_sha256 not in gone]
    kept = [*(replace(w, caption=encoded[w.window_id]) for w in missing if w.window_id in encoded), *kept]
    detail = "its footage was removed, replaced or not readable before it was encoded"
    rejects = [Reject(w.source_uri, "gone", detail, w.window_id) for w in missing if w.window_id not in encoded]
    assigned = {w.shot_id: Assigned(w.group, w.split) for w in before}
    planned, more = assign(kept, _alike(config, scans, kept), config, assigned)
    return planned, rejects + more


def _alike(config: PrepareConfig, scans: Scans, windows: list[Window]) -> list[tuple[str, str]]:
    """Pairs of shot ids whose windows show nearly the same."""
    if config.duplicates.action == "keep":
        return []
    spans: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)  # source to shot to what is used of it
    for w in windows:
        first, last = spans[w.source_sha256].get(w.shot_id, (w.frame_pts[0], w.frame_pts[-1]))
        spans[w.source_sha256][w.shot_id] = min(first, w.frame_pts[0]), max(last, w.frame_pts[-1])
    ids: list[str] = []
    samples: list[list[FrameScores]] = []
    for sha256, shots in spans.items():
        if (scan := scans.get(sha256)) is not None:
            ids += shots
            samples += [samples_between(scan, *span) for span in shots.values()]
    return [(ids[a], ids[b]) for a, b in near_duplicates(samples, config.duplicates)]


def write_sources(dataset: Storage, files: list[File], scans: Scans) -> None:
    """Store what every file is: those of `files` that could be scanned, and those that the footage no longer holds."""
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
