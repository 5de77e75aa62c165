"""Filmstrips of a few held-out windows, real beside generated, and their videos in a codec that browsers play."""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from cinesynth.data.video import read_video, write_video
from cinesynth.report.images import strip, strip_places
from cinesynth.storage import Storage


@dataclass(frozen=True)
class Strip:
    """One arm of one window."""

    arm: str
    images: list[str]
    """Data URIs of the frames; empty when there is no video."""
    video: str
    """Name of the MP4 relative to the page; empty when there is no video."""
    score: str = ""
    """A metric's number of this video, in words; empty when none is shown."""


@dataclass(frozen=True)
class Scene:
    """One held-out window and what each arm made of it."""

    window_id: str
    caption: str
    domain: str
    places: list[int]
    """Which frames are shown."""
    strips: list[Strip]


def choose_windows(generated: Storage, domains: dict[str, str], count: int) -> list[dict[str, str]]:
    """Rows (`video`, `group`, `caption`) of at most `count` windows: one a group, domains in turn, by hash.

    The choice reads neither videos nor metrics, so no window is picked for its looks.

    Args:
        generated: folder of a generate run.
        domains: window_id to domain, as far as known.
        count: most windows; fewer groups give fewer.
    """
    if not generated.exists("groups.csv"):
        return []
    rows = list(csv.DictReader(io.StringIO(generated.read_text("groups.csv"))))
    rows.sort(key=lambda row: hashlib.sha256(row["video"].encode()).hexdigest())
    first_of_group = {row["group"]: row for row in reversed(rows)}
    by_domain: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if first_of_group[row["group"]] is row:
            by_domain[domains.get(row["video"], "")].append(row)
    turns = [(turn, name, row) for name, members in by_domain.items() for turn, row in enumerate(members)]
    return [row for _, _, row in sorted(turns, key=lambda item: item[:2])[:count]]


def make_scenes(
    generated: Storage,
    page: Storage,
    arms: list[str],
    domains: dict[str, str],
    count: int = 4,
    frames: int = 6,
    folder: str = "videos",
) -> list[Scene]:
    """Filmstrips of `count` windows; their MP4s are written to a folder beside the page.

    Args:
        generated: folder of the generate run, with `groups.csv` and `videos/<arm>/<window_id>.mkv`.
        page: folder that the page is written to.
        arms: which of its folders, in the order of rows.
        domains: window_id to domain.
        count: windows.
        frames: pictures in a strip.
        folder: of the MP4s.
    """
    scenes = []
    with tempfile.TemporaryDirectory(prefix="cinesynth-report-") as scratch:
        for row in choose_windows(generated, domains, count):
            window_id = row["video"]
            places: list[int] = []
            strips = []
            for arm in arms:
                made = _make_strip(generated, page, folder, arm, window_id, frames, Path(scratch))
                strips.append(made[0])
                places = made[1] or places
            scenes.append(Scene(window_id, row["caption"], domains.get(window_id, ""), places, strips))
    return scenes


def _make_strip(
    generated: Storage, page: Storage, folder: str, arm: str, window_id: str, count: int, scratch: Path
) -> tuple[Strip, list[int]]:
    source = f"videos/{arm}/{window_id}.mkv"
    if not generated.exists(source):
        return Strip(arm, [], ""), []
    frames, fps = read_video(generated.download(source, scratch / "lossless.mkv"))
    name = f"{folder}/{window_id[:16]}-{arm}.mp4"
    page.upload(write_video(scratch / "playable.mp4", frames, fps), name)
    return Strip(arm, strip(frames, count), name), strip_places(len(frames), count)
