"""The page of a clips dataset: windows by bucket, the cuts of every source, and what was left out, by reason."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cinesynth.data.dataset import WindowFacts
from cinesynth.data.records import Reject
from cinesynth.data.spread import in_turn
from cinesynth.outline import sized
from cinesynth.report.page import write_page
from cinesynth.report.sheet import contact_sheet
from cinesynth.storage import Storage

_SHEET_WINDOWS = 120
_SHEET_BYTES = 3_600_000
_REJECT_ROWS, _SOURCE_ROWS = 60, 60
_BARS = 6000  # of all timelines together, about 0.8 MB
_CAPTION_PLACES = {
    "shot": "shots in JSON files",
    "txt": "text files",
    "json": "JSON files",
    "footage": "lists, or the captions of sources",
    "captioner": "the captioner",
    "default": "the dataset's default",
    "unknown": "not recorded",
}
_SCORES = ("motion", "blur", "luma", "text", "aesthetic")
_PICTURE_SCORES = ("motion", "blur", "luma", "clipped", "static")  # measured in every window, or missing for a reason


@dataclass(frozen=True)
class Bar:
    """A part of a timeline, in percent of the file."""

    left: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True)
class Timeline:
    """One source: what it is, its shots, and the windows that were cut out of it."""

    name: str
    uri: str
    facts: str
    flags: list[str]
    shot_count: int
    window_count: int
    shots: list[Bar]
    windows: list[Bar]
    seconds: float


def write_dataset_page(
    dataset: Storage,
    manifest: dict[str, Any],
    windows: Sequence[WindowFacts],
    rejects: list[Reject],
    sources: list[dict[str, Any]],
) -> str:
    """Write `index.html` beside the shards that `manifest` names; returns its uri."""
    shards = [shard["file"] for shard in manifest["shards"]]
    ordered = sorted(windows, key=lambda w: (w.bucket, w.split, w.domain, w.source_uri, w.start_s))
    sheet = contact_sheet(dataset, shards, ordered, _SHEET_WINDOWS, _SHEET_BYTES)
    by_bucket = {bucket: [(w, image) for w, image in sheet if w.bucket == bucket] for bucket in manifest["buckets"]}
    return write_page(
        dataset,
        "index.html",
        "dataset.html.j2",
        m=manifest,
        summary=_summary(manifest),
        duration=_duration,
        gaps=_gaps(windows),
        caption_places=_CAPTION_PLACES,
        sheet={bucket: entries for bucket, entries in by_bucket.items() if entries},
        shown=len(sheet),
        score_names=_SCORES,
        timelines=_timelines(sources[:_SOURCE_ROWS], windows),
        more_sources=max(0, len(sources) - _SOURCE_ROWS),
        rejects=sorted(in_turn(rejects, lambda r: r.reason)[:_REJECT_ROWS], key=lambda r: r.reason),
        more_rejects=max(0, len(rejects) - _REJECT_ROWS),
    )


def _summary(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = sum(part["seconds"] for part in manifest["splits"].values())
    megabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    size = f"{megabytes / 1000:.2f} GB" if megabytes >= 1000 else f"{megabytes:.1f} MB"
    return [
        ("windows", f"{manifest['windows']:,}"),
        ("length", _duration(seconds)),
        ("footage", _duration(manifest["found_s"])),
        ("size", f"{size} in {sized(len(manifest['shards']), 'shard')}"),
        ("encoded by", f"{manifest['model']} ({manifest['encoder_hash'][:12]})"),
        ("content", manifest["content_sha256"][:12]),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _unscored(windows: Sequence[WindowFacts]) -> dict[str, list[WindowFacts]]:
    """The windows without each of the scores that all could have, where there are any."""
    names = sorted({*_PICTURE_SCORES, *(name for w in windows for name in w.scores)})
    lacking = {name: [w for w in windows if name not in w.scores] for name in names}
    return {name: without for name, without in lacking.items() if without}


def _gaps(windows: Sequence[WindowFacts]) -> list[str]:
    """What was not measured in some of all windows, with how many."""
    return [
        f"{name} in {sized(len(without), 'window')} of {sized(len({w.source_sha256 for w in without}), 'source')}"
        for name, without in _unscored(windows).items()
    ]


def _lacking(windows: Sequence[WindowFacts]) -> list[str]:
    """What was not measured in the windows of a source."""
    return [
        f"{name} not measured" + (f" in {sized(len(without), 'window')}" if len(without) < len(windows) else "")
        for name, without in _unscored(windows).items()
    ]


def _timelines(sources: list[dict[str, Any]], windows: Sequence[WindowFacts]) -> list[Timeline]:
    finest = 2 / _BARS * len(sources)
    of_source: dict[str, list[WindowFacts]] = defaultdict(list)
    for window in windows:
        of_source[window.source_sha256].append(window)
    return [_timeline(source, of_source[source["sha256"]], finest) for source in sources]


def _timeline(source: dict[str, Any], windows: Sequence[WindowFacts], finest: float) -> Timeline:
    """The timeline of a source. Shots and windows that are narrower than the share `finest` are drawn together."""
    info, seconds = json.loads(source["info"]), max(source["seconds"], 1e-9)
    flags = [
        name
        for name, there in (
            ("interlaced", info["interlaced"]),
            (f"{info['streams']} video streams", info["streams"] > 1),
            (f"rotated {info['rotation']}°", info["rotation"]),
            (f"{info['bits']} bit", info["bits"] > 8),
            (info["transfer"].upper(), info["transfer"] != "sdr"),
            ("full range", info["range"] == "full"),
            (f"{source['damaged_s']:.1f} s damaged", source["damaged_s"]),
            ("transparent parts shown as opaque", info.get("alpha")),
            ("times mended", info.get("times") == "mended"),
            *((lacks, True) for lacks in _lacking(windows)),
        )
        if there
    ]
    facts = f"{info['width']}×{info['height']}, {info['fps']:.4g} fps, {info['codec']}, {info['matrix']}"

    def bars(spans: Iterable[tuple[float, float, str]]) -> list[Bar]:
        together: list[tuple[float, float, str, int]] = []
        for start, end, kind in spans:
            if together and end - together[-1][0] < finest * seconds:
                first, _, kind, number = together.pop()
                together.append((first, end, kind, number + 1))
            else:
                together.append((start, end, kind, 1))
        return [
            Bar(
                left=100 * start / seconds,
                width=100 * (end - start) / seconds,
                kind=kind,
                title=f"{start:.2f}–{end:.2f} s" + (f": {number} together" if number > 1 else ""),
            )
            for start, end, kind, number in together
        ]

    shots = bars((start, end, "odd" if i % 2 else "even") for i, (start, end) in enumerate(source["shots"]))
    own = bars((w.start_s, w.end_s, w.split) for w in sorted(windows, key=lambda w: w.start_s))
    return Timeline(
        name=source["uri"].rsplit("/", 1)[-1],
        uri=source["uri"],
        facts=facts,
        flags=flags,
        shot_count=len(source["shots"]),
        window_count=len(windows),
        shots=shots,
        windows=own,
        seconds=source["seconds"],
    )
