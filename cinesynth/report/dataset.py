"""The page of a clips dataset: its counts, a contact sheet and what was rejected."""

from __future__ import annotations

from typing import Any

from cinesynth.data.windows import Reject, Window
from cinesynth.report.page import count, write_page
from cinesynth.report.sheet import contact_sheet
from cinesynth.storage import Storage

_SHEET_WINDOWS = 120
_SHEET_BYTES = 4_000_000
_REJECT_ROWS = 50


def write_dataset_page(dataset: Storage, manifest: dict[str, Any], windows: list[Window], rejects: list[Reject]) -> str:
    """Write `index.html` beside the shards that `manifest` names; returns its uri."""
    shards = [shard["file"] for shard in manifest["shards"]]
    ordered = sorted(windows, key=lambda w: (w.split, w.domain, w.source_uri, w.start_s))
    return write_page(
        dataset,
        "index.html",
        "dataset.html.j2",
        m=manifest,
        summary=_summary(manifest),
        sheet=contact_sheet(dataset, shards, ordered, _SHEET_WINDOWS, _SHEET_BYTES),
        rejects=rejects[:_REJECT_ROWS],
        more_rejects=max(0, len(rejects) - _REJECT_ROWS),
    )


def _summary(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    window = manifest["window"]
    seconds = manifest["windows"] * window["num_frames"] / window["fps"]
    megabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    size = f"{megabytes / 1000:.2f} GB" if megabytes >= 1000 else f"{megabytes:.1f} MB"
    return [
        ("windows", f"{manifest['windows']:,}"),
        ("each", f"{window['num_frames']} frames at {window['fps']} fps, {window['width']}×{window['height']}"),
        ("length", f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"),
        ("size", f"{size} in {count(len(manifest['shards']), 'shard')}"),
        ("encoded by", f"{manifest['model']} ({manifest['encoder_hash'][:12]})"),
        ("content", manifest["content_sha256"][:12]),
    ]
