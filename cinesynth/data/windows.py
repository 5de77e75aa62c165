"""Windows: runs of 4n+1 frames at 16 fps that cross no cut, named by content and split by group.

Everything here is a pure function of a file's bytes, its timestamps and the configuration.
"""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from cinesynth.config import PrepareSettings, SplitSettings, WindowSettings
from cinesynth.data.captions import Captions, read_captions
from cinesynth.data.footage import Decoder, VideoInfo
from cinesynth.data.shards import WindowFacts
from cinesynth.data.shots import SCAN_WIDTH, ShotSpan, detect_cuts, split_shots
from cinesynth.errors import MediaError
from cinesynth.storage import sha256_json


@dataclass(frozen=True)
class Window(WindowFacts):
    """One window of one file, before encoding. `frame_pts` names the source frame of every window frame."""

    frame_pts: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """One file to index: where it lies, its content hash, and what its footage source says about it."""

    path: str
    sha256: str
    domain: str
    caption: str | None


@dataclass(frozen=True)
class Reject:
    """Something that is not in the dataset, and why. `window_id` is empty when it is more than one window."""

    source: str
    reason: str
    detail: str
    window_id: str = ""


def index_source(source: Source, settings: PrepareSettings, decoder: Decoder) -> tuple[list[Window], list[Reject]]:
    """All windows of a file, and what was left out of it; an unreadable file is one reject, never an exception."""
    try:
        info = decoder.probe(source.path)
        captions = read_captions(Path(source.path), source.caption or settings.caption, settings.trigger)
        pts: list[int] = []

        def small_frames() -> Any:
            for stamp, frame in decoder.scan(source.path, SCAN_WIDTH):
                pts.append(stamp)
                yield frame

        cuts = detect_cuts(small_frames(), settings.shots)
    except MediaError as e:
        return [], [Reject(source.path, "unreadable", str(e))]
    windows: dict[str, Window] = {}
    rejects = []
    for shot in split_shots(pts, cuts):
        spans = window_spans(shot, info.time_base, settings.window)
        if not spans:
            rejects.append(_too_short(source, shot, pts[0], info, settings.window))
        for span in spans:
            window = _window(source, shot, span, pts[0], info, captions, settings)
            windows.setdefault(window.window_id, window)
    return list(windows.values()), rejects


def window_spans(shot: ShotSpan, time_base: Fraction, settings: WindowSettings) -> list[tuple[int, ...]]:
    """Source timestamps of the frames of every window of a shot.

    Sample i of a shot lies i / fps seconds after the shot's first frame, and shows the frame that is on the screen
    at that time. Half a tick, at most half a millisecond, is allowed for: containers round timestamps to ticks.
    """
    slack = min(Fraction(1, 2), Fraction(1, 2000) / time_base)
    ticks = Fraction(1, settings.fps) / time_base
    # The last sample that still falls before the shot's end.
    samples = -int((slack - (shot.end_pts - shot.start_pts)) // ticks)
    starts = range(0, samples - settings.num_frames + 1, settings.stride)
    return [
        tuple(
            shot.pts[bisect.bisect_right(shot.pts, shot.start_pts + i * ticks + slack) - 1]
            for i in range(start, start + settings.num_frames)
        )
        for start in starts[: settings.max_per_shot]
    ]


def window_id(source_sha256: str, span: tuple[int, ...], settings: WindowSettings) -> str:
    """Hex sha256 of the source's content, the span in ticks and the geometry."""
    geometry = {"height": settings.height, "width": settings.width, "fps": settings.fps, "crop": "center"}
    return sha256_json({"source": source_sha256, "span": [span[0], span[-1]], "frames": len(span), **geometry})


def assign_split(group: str, domain: str, settings: SplitSettings) -> str:
    """`test`, `val` or `train`, by a hash of salt, domain and group: other footage never changes it."""
    digest = hashlib.sha256("\0".join((settings.salt, domain, group)).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if share < settings.test else "val" if share < settings.test + settings.val else "train"


def _window(
    source: Source,
    shot: ShotSpan,
    span: tuple[int, ...],
    first_pts: int,
    info: VideoInfo,
    captions: Captions,
    settings: PrepareSettings,
) -> Window:
    w = settings.window
    shot_id = f"{source.sha256[:16]}-{shot.start_pts}"
    group = captions.group or (source.sha256[:16] if settings.group_by == "source" else shot_id)
    start_s = float((span[0] - first_pts) * info.time_base)
    return Window(
        window_id=window_id(source.sha256, span, w),
        source_uri=source.path,
        source_sha256=source.sha256,
        shot_id=shot_id,
        group=group,
        start_s=start_s,
        end_s=start_s + w.num_frames / w.fps,
        fps=w.fps,
        num_frames=w.num_frames,
        height=w.height,
        width=w.width,
        bucket=f"{w.width}x{w.height}x{w.num_frames}",
        caption=captions.at(start_s + w.num_frames / w.fps / 2),
        domain=source.domain,
        split=assign_split(group, source.domain, settings.split),
        frame_pts=span,
    )


def _too_short(source: Source, shot: ShotSpan, first_pts: int, info: VideoInfo, window: WindowSettings) -> Reject:
    start, end = (float((p - first_pts) * info.time_base) for p in (shot.start_pts, shot.end_pts))
    needed = (window.num_frames - 1) / window.fps
    return Reject(
        source.path,
        "shot_too_short",
        f"shot at {start:.2f}-{end:.2f} s is shorter than a window ({needed:.2f} s)",
    )
