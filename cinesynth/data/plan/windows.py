"""Windows: runs of frames at the model's rate that cross no cut, named by content, brought to a bucket.

Everything here is a pure function of a file's scan, its source and captions, and the configuration.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from cinesynth.data.config import PrepareSettings, Size, WindowSettings
from cinesynth.data.footage.captions import Captions
from cinesynth.data.footage.sources import Source
from cinesynth.data.plan.geometry import choose_size, crop_box
from cinesynth.data.records import Box, Reject, Stamp, Window
from cinesynth.data.scan.decoder import VideoInfo
from cinesynth.data.scan.scan import FrameScores, Scan
from cinesynth.data.scan.shots import ShotSpan
from cinesynth.storage import sha256_json


def cut_windows(
    source: Source, sha256: str, stamp: Stamp, scan: Scan, captions: Captions, settings: PrepareSettings
) -> tuple[list[Window], list[Reject]]:
    """All windows of a source, and what was left out of it. Group and split are not assigned yet: both are empty.

    A caption is empty where nothing but the dataset's default is left.
    """
    windows: dict[str, Window] = {}
    rejects: list[Reject] = []
    w, info = settings.window, scan.info
    damaged = {pts for pts, bad in zip(scan.pts, scan.damaged, strict=True) if bad}
    for shot, bars in zip(scan.shots(), scan.bars, strict=True):
        part = _between(shot, scan.pts[0], info.time_base, source.in_s, source.out_s)
        if part is None:
            continue
        span = _Shot(source, sha256, stamp, shot, part, bars, scan, captions, settings)
        size = choose_size(span.picture, info.pixel_aspect, w.size_pairs(), w.max_upscale)
        spans, more = window_spans(part, info.time_base, w)
        if (why := span.other_size()) is not None:
            rejects.append(span.reject("size_changes", why))
        elif size is None:
            rejects.append(span.reject("too_small", _too_small(span.picture, info, w)))
        elif not spans:
            samples = count_samples(part, info.time_base, w.fps)
            detail = f"it holds {samples} of the {min(w.num_frames)} frames that a window needs at {w.fps} fps"
            rejects.append(span.reject("shot_too_short", detail))
        else:
            for pts in spans:
                if damaged & set(pts):
                    rejects.append(span.reject("damaged", "a frame of it does not decode cleanly", pts))
                else:
                    window = span.window(pts, size)
                    windows.setdefault(window.window_id, window)
            if more:
                rejects.append(span.reject("max_per_shot", f"{more} more windows lie beyond max_per_shot"))
    if scan.late:
        detail = f"{scan.late} frames are left out, as their timestamps go back; write the file anew (ffmpeg)"
        rejects.append(Reject(source.uri, "damaged", detail))
    if scan.untimed:
        detail = f"{scan.untimed} frames are left out, as they have no timestamp; write the file anew (ffmpeg)"
        rejects.append(Reject(source.uri, "damaged", detail))
    if not windows and not rejects:
        seconds = float((scan.shots()[-1].end_pts - scan.pts[0]) * info.time_base)
        detail = f"in_s = {source.in_s:g} lies beyond its end at {seconds:.2f} s"
        rejects.append(Reject(source.uri, "shot_too_short", detail))
    return list(windows.values()), rejects


def window_spans(shot: ShotSpan, time_base: Fraction, settings: WindowSettings) -> tuple[list[tuple[int, ...]], int]:
    """Source timestamps of the frames of every window of a shot, and how many more `max_per_shot` leaves out.

    Sample i of a shot lies i / fps seconds after the shot's first frame, and shows the frame that is on the screen
    at that time. Half a tick, at most half a millisecond, is allowed for: containers round timestamps to ticks.
    """
    slack, ticks = _slack(time_base), Fraction(1, settings.fps) / time_base
    spans = [
        tuple(
            shot.pts[bisect.bisect_right(shot.pts, shot.start_pts + i * ticks + slack) - 1]
            for i in range(start, start + length)
        )
        for start, length in place_windows(count_samples(shot, time_base, settings.fps), settings)
    ]
    kept = spans[: settings.max_per_shot]
    return kept, len(spans) - len(kept)


def count_samples(shot: ShotSpan, time_base: Fraction, fps: int) -> int:
    """Samples of a shot at `fps`: the last one still falls before the shot's end."""
    ticks = Fraction(1, fps) / time_base
    return -int((_slack(time_base) - (shot.end_pts - shot.start_pts)) // ticks)


def place_windows(samples: int, settings: WindowSettings) -> list[tuple[int, int]]:
    """(start, length) of the windows of a shot of so many samples: the longest first, shorter ones after their end."""
    placed: list[tuple[int, int]] = []
    start = 0
    for length in sorted(set(settings.num_frames), reverse=True):
        while start + length <= samples:
            placed.append((start, length))
            start += settings.stride or length
        start = max((a + b for a, b in placed), default=0)
    return placed


def window_id(source_sha256: str, span: Sequence[int], size: Size, box: Box, fps: int) -> str:
    """Hex sha256 of the source's content, the span in ticks and the geometry."""
    geometry = {"width": size[0], "height": size[1], "box": list(box), "fps": fps}
    return sha256_json({"source": source_sha256, "span": [span[0], span[-1]], "frames": len(span), **geometry})


class _Shot:
    """One shot of one source, or the part of it that the source names, and what its windows are made of."""

    def __init__(
        self,
        source: Source,
        sha256: str,
        stamp: Stamp,
        whole: ShotSpan,
        span: ShotSpan,
        bars: tuple[float, float],
        scan: Scan,
        captions: Captions,
        settings: PrepareSettings,
    ) -> None:
        self.source, self.sha256, self.stamp, self.span, self.scan = source, sha256, stamp, span, scan
        self.captions, self.settings = captions, settings
        self.info = scan.info
        self.bars = 1 - (1 - 2 * bars[0]) * (1 - 2 * bars[1])
        cropped = settings.window.black_bars == "crop"
        self.picture = _inside(self.info, bars if cropped else (0.0, 0.0))
        self.shot_id = f"{sha256[:16]}-{span.start_pts}"
        # Parts of one shot may share frames.
        self.group = f"{sha256[:16]}-{whole.pts[0]}" if settings.group_by == "shot" else sha256[:16]
        self.samples = samples_between(scan, span.pts[0], span.pts[-1])

    def window(self, pts: tuple[int, ...], size: Size) -> Window:
        w = self.settings.window
        box = crop_box(self.picture, self.info.pixel_aspect, size, w.crop_centre)
        start_s = self._seconds(pts[0])
        caption, caption_from = self.captions.found(start_s + len(pts) / w.fps / 2, self.source)
        return Window(
            window_id=window_id(self.sha256, pts, size, box, w.fps),
            source_uri=self.source.uri,
            source_sha256=self.sha256,
            shot_id=self.shot_id,
            group=self.source.group or self.captions.group or self.group,
            start_s=start_s,
            end_s=start_s + len(pts) / w.fps,
            fps=w.fps,
            num_frames=len(pts),
            height=size[1],
            width=size[0],
            bucket=f"{size[0]}x{size[1]}x{len(pts)}",
            caption=caption,
            domain=self.source.domain,
            split="",
            scores=self._scores(pts) | {"upscale": round(size[1] / box[3], 4)},
            location=self.source.location,
            stamp=self.stamp,
            frame_pts=pts,
            box=box,
            caption_from=caption_from,
        )

    def reject(self, reason: str, detail: str, pts: Sequence[int] | None = None) -> Reject:
        first, last = (pts[0], pts[-1]) if pts is not None else (self.span.start_pts, self.span.end_pts)
        what = "window" if pts is not None else "shot"
        return Reject(
            self.source.uri, reason, f"{what} at {self._seconds(first):.2f}-{self._seconds(last):.2f} s: {detail}"
        )

    def other_size(self) -> str | None:
        """Why the shot cannot be used, where its pictures do not have the size of the file's first one."""
        first, width, height = self.scan.size_run(self.span.pts[0])
        if (width, height) == (self.info.width, self.info.height):
            return None
        at = self._seconds(self.scan.pts[first])
        return (
            f"the picture's size changes at {at:.2f} s, to {width}x{height}; "
            f"only shots of the first size, {self.info.width}x{self.info.height}, are used"
        )

    def _scores(self, pts: Sequence[int]) -> dict[str, float]:
        """Means over the samples inside the window, or the nearest one of the shot. What was not measured is absent."""
        at = self.scan.pts
        inside = [s for s in self.samples if pts[0] <= at[s.frame] <= pts[-1]]
        if not inside and self.samples:
            inside = [min(self.samples, key=lambda s: abs(2 * at[s.frame] - pts[0] - pts[-1]))]
        moved = [
            now.motion
            for before, now in zip(self.samples, self.samples[1:], strict=False)
            if now.motion is not None and at[before.frame] <= pts[-1] and at[now.frame] >= pts[0]
        ]
        scores = {"bars": self.bars, "interlaced": float(self.info.interlaced)}
        if moved:
            scores["motion"] = sum(moved) / len(moved)
        if inside:
            scores |= {
                name: sum(getattr(s, name) for s in inside) / len(inside) for name in ("blur", "luma", "clipped")
            }
        if len(pts) > 1:
            scores["static"] = self._static(pts)
        return {name: round(value, 4) for name, value in scores.items()}

    def _static(self, pts: Sequence[int]) -> float:
        """Share of a window's frames that show the same as the one before, of the same source frame or of another."""
        frames = [bisect.bisect_left(self.scan.pts, p) for p in pts]
        same = [all(self.scan.still[before + 1 : now + 1]) for before, now in pairwise(frames)]
        return sum(same) / len(same)

    def _seconds(self, pts: int) -> float:
        return float((pts - self.scan.pts[0]) * self.info.time_base)


def samples_between(scan: Scan, first_pts: int, last_pts: int) -> list[FrameScores]:
    """The samples of the frames from one timestamp to another, both included."""
    first, stop = bisect.bisect_left(scan.pts, first_pts), bisect.bisect_right(scan.pts, last_pts)
    start, end = (bisect.bisect_left(scan.samples, frame, key=lambda s: s.frame) for frame in (first, stop))
    return list(scan.samples[start:end])


def _between(shot: ShotSpan, first_pts: int, time_base: Fraction, in_s: float, out_s: float) -> ShotSpan | None:
    """The part of a shot between two times from the file's first frame."""
    # By the decimals as they are written: the float 0.1 is a little more than a tenth.
    start = first_pts + math.ceil(Fraction(str(in_s)) / time_base)
    end = first_pts + math.floor(Fraction(str(out_s)) / time_base) if out_s < math.inf else shot.end_pts
    pts = shot.pts[bisect.bisect_left(shot.pts, start) : bisect.bisect_left(shot.pts, end)]
    return ShotSpan(pts[0], min(shot.end_pts, end), pts) if pts else None


def _slack(time_base: Fraction) -> Fraction:
    """Ticks by which a timestamp may be rounded."""
    return min(Fraction(1, 2), Fraction(1, 2000) / time_base)


def _inside(info: VideoInfo, bars: tuple[float, float]) -> Box:
    """The picture without its bars."""
    top, left = bars[0] * info.height, bars[1] * info.width
    return left, top, info.width - 2 * left, info.height - 2 * top


def _too_small(picture: Box, info: VideoInfo, window: WindowSettings) -> str:
    width, height = round(picture[2] * float(info.pixel_aspect)), round(picture[3])
    smallest = min(window.size_pairs(), key=lambda size: size[0] * size[1])
    return (
        f"{width}x{height} would be enlarged more than {window.max_upscale:g} times to {smallest[0]}x{smallest[1]}; "
        "raise window.max_upscale or choose smaller window.sizes"
    )
