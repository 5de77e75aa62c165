"""One pass over a file: timestamps, damage, cuts, and scores of two pictures a second.

A scan depends on the file's bytes and the shot detector alone. It is stored by the file's sha256, so it is never made
twice, wherever the file lies and whatever windows are cut out of it.
"""

from __future__ import annotations

import bisect
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from cinesynth.data.config import ShotSettings
from cinesynth.data.scan import scores
from cinesynth.data.scan.decoder import VideoInfo
from cinesynth.data.scan.decoder_pyav import ScannedFrame, mended_times, probe, scan, spread_damage
from cinesynth.data.scan.shots import SCAN_WIDTH, Cut, ShotSpan, make_cut_detector, split_shots, with_cuts_at
from cinesynth.data.scan.timing import StatedTimes, TimesUnusable
from cinesynth.errors import MediaError
from cinesynth.pictures import Frames

SCAN_VERSION = 3  # raised whenever a change alters scans
SAMPLES_PER_S = 2
_PICTURE_WIDTH, _BLUR_WIDTH = 1280, 512
_BEAT_FRAMES = 25


@dataclass(frozen=True)
class FrameScores:
    """What one frame scores, two a second.

    `motion` is from the sample before it; None for the first, and where the picture is too narrow for it.
    """

    frame: int
    motion: float | None
    blur: float
    luma: float
    clipped: float
    hash: int
    """`perceptual_hash`; 0 where the picture has no contrast."""
    tint: str
    """Mean colours of 8x6 fields, hexadecimal."""


@dataclass(frozen=True)
class Scan:
    """What was found in one file.

    Attributes:
        info: of the video stream.
        pts: of every frame, ascending.
        damaged: whether a frame shows, or may show, a decoding error.
        still: whether a frame shows the same as the one before it.
        cuts: between shots; also where the picture's size changes.
        bars: of each shot, the black bars' height at top and bottom and their width left and right, as shares.
        samples: ascending.
        sizes: (first frame, width, height) of each run of frames of one size, ascending.
        late: number of frames that were left out, as their timestamps go back.
        untimed: number of frames that were left out, as they have no timestamp.
    """

    info: VideoInfo
    pts: tuple[int, ...]
    damaged: tuple[bool, ...]
    still: tuple[bool, ...]
    cuts: tuple[Cut, ...]
    bars: tuple[tuple[float, float], ...]
    samples: tuple[FrameScores, ...]
    sizes: tuple[tuple[int, int, int], ...]
    late: int
    untimed: int

    def shots(self) -> list[ShotSpan]:
        return split_shots(list(self.pts), list(self.cuts))

    def size_run(self, pts: int) -> tuple[int, int, int]:
        """The entry of `sizes` that the frame with a timestamp belongs to."""
        frame = bisect.bisect_left(self.pts, pts)
        return self.sizes[bisect.bisect_right(self.sizes, frame, key=lambda run: run[0]) - 1]


SCAN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("uri", pa.string()),
        ("error", pa.string()),
        ("again", pa.bool_()),  # another attempt may succeed
        ("info", pa.string()),
        ("pts", pa.list_(pa.int64())),
        ("damaged", pa.list_(pa.bool_())),
        ("still", pa.list_(pa.bool_())),
        ("cuts", pa.list_(pa.list_(pa.int32()))),
        ("bars", pa.list_(pa.list_(pa.float32()))),
        ("samples", pa.string()),
        ("sizes", pa.list_(pa.list_(pa.int32()))),
        ("late", pa.int64()),
        ("untimed", pa.int64()),
        ("cpu_s", pa.float64()),
    ]
)


def timed_scan(beat: Callable[[], None], path: str, settings: ShotSettings) -> tuple[Scan, float]:
    """`scan_file`, and the CPU seconds it took; runs in the watched child."""
    cv2.setNumThreads(1)  # the child has one core, on which more threads only wait
    started = time.process_time()
    found = scan_file(beat, path, settings)
    return found, time.process_time() - started


def scan_file(beat: Callable[[], None], path: str, settings: ShotSettings) -> Scan:
    """Scan one file; calls `beat` every second or so of decoding. Raises MediaError when it cannot be decoded."""
    info = probe(path)
    stated = StatedTimes()
    try:
        found = _Pass(info, settings).run(path, lambda frame: stated.of(frame.pts, frame.dts), beat)
        stated.finish()
    except TimesUnusable:
        mended = mended_times(path)
        return _Pass(replace(info, times="mended"), settings).run(path, lambda frame: mended.of(frame.dts), beat)
    if not found.pts:
        if stated.untimed:
            raise MediaError(
                f"{path} holds no timestamps, as raw streams do; put it into a container with its frame rate "
                "(ffmpeg -framerate 25 -i FILE -c copy FILE.mkv)"
            )
        raise MediaError(f"{path} holds no frame that decodes")
    damaged = list(found.damaged)
    for gap in stated.gaps:  # no window may reach over a frame that is missing
        damaged[max(0, gap - 1) : gap + 1] = [True] * len(damaged[max(0, gap - 1) : gap + 1])
    return replace(found, damaged=tuple(damaged), late=stated.late, untimed=stated.untimed)


class _Pass:
    """One pass over a file, from its first frame to its last."""

    def __init__(self, info: VideoInfo, settings: ShotSettings) -> None:
        self._info = info
        self._detector = make_cut_detector(settings)
        self._sampler = _Sampler(info.time_base)
        self._pts: list[int] = []
        self._damaged: list[bool] = []
        self._key: list[bool] = []
        self._still: list[bool] = []
        self._sizes: list[tuple[int, int, int]] = []
        self._before: scores.Grey | None = None

    def run(self, path: str, time: Callable[[ScannedFrame], int | None], beat: Callable[[], None]) -> Scan:
        """What is found in the frames to which `time` gives a time."""
        interlaced = False
        for number, frame in enumerate(scan(path)):
            if number % _BEAT_FRAMES == 0:
                beat()
            if (pts := time(frame)) is not None:
                self._add(pts, frame)
                interlaced = interlaced or frame.interlaced
        cuts = with_cuts_at([start for start, _, _ in self._sizes[1:]], self._detector.finish(beat))
        return Scan(
            info=replace(self._info, interlaced=interlaced),
            pts=tuple(self._pts),
            damaged=tuple(spread_damage(self._damaged, self._key, self._info.codec)),
            still=tuple(self._still),
            cuts=tuple(cuts),
            bars=tuple(self._sampler.bars(shot) for shot in split_shots(self._pts, cuts)),
            samples=tuple(self._sampler.samples),
            sizes=tuple(self._sizes),
            late=0,
            untimed=0,
        )

    def _add(self, pts: int, frame: ScannedFrame) -> None:
        small = frame.rgb(SCAN_WIDTH)
        if not self._sizes or self._sizes[-1][1:] != frame.size:
            self._sizes.append((len(self._pts), *frame.size))
        if self._before is not None and small.shape[:2] != self._before.shape:  # detectors take one size
            small = np.asarray(cv2.resize(small, self._before.shape[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        now = scores.grey(small)
        self._detector.feed(small)
        if self._sampler.wants(pts):
            self._sampler.add(len(self._pts), pts, now, frame.rgb(_PICTURE_WIDTH))
        self._pts.append(pts)
        self._damaged.append(frame.damaged)
        self._key.append(frame.key)
        self._still.append(self._before is not None and scores.unchanged(self._before, now))
        self._before = now


class _Sampler:
    """Chooses two frames a second and scores them."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._next: Fraction | None = None
        self._before: tuple[scores.Grey, int] | None = None
        self._profiles: list[tuple[np.ndarray, np.ndarray]] = []
        self._pts: list[int] = []
        self.samples: list[FrameScores] = []

    def wants(self, pts: int) -> bool:
        time = pts * self._time_base
        if self._next is not None and time < self._next:
            return False
        step = Fraction(1, SAMPLES_PER_S)
        self._next = time + step if self._next is None else self._next + step * (1 + (time - self._next) // step)
        return True

    def add(self, frame: int, pts: int, small: scores.Grey, picture: Frames) -> None:
        motion = None
        if self._before is not None and self._before[0].shape == small.shape:
            seconds = float((pts - self._before[1]) * self._time_base)
            measured = scores.motion(self._before[0], small, seconds)
            motion = round(measured, 5) if measured is not None else None
        self._before = small, pts
        large = scores.grey(picture)
        luma, clipped = scores.exposure(small)
        height = max(16, round(large.shape[0] * _BLUR_WIDTH / large.shape[1]))
        shown = large
        if large.shape[1] > _BLUR_WIDTH:
            shown = np.asarray(cv2.resize(large, (_BLUR_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
        tint = scores.tints(picture).hex()
        blur, code = round(scores.blur(shown), 4), scores.perceptual_hash(small)
        self.samples.append(FrameScores(frame, motion, blur, round(luma, 4), round(clipped, 4), code, tint))
        self._profiles.append(scores.edge_profile(large))
        self._pts.append(pts)

    def bars(self, shot: ShotSpan) -> tuple[float, float]:
        first, last = bisect.bisect_left(self._pts, shot.pts[0]), bisect.bisect_right(self._pts, shot.pts[-1])
        size = [len(side) for side in self._profiles[0]]
        inside = [profile for profile in self._profiles[first:last] if [len(side) for side in profile] == size]
        if not inside:
            return 0.0, 0.0
        rows, columns = (np.max([profile[i] for profile in inside], axis=0) for i in (0, 1))
        vertical, horizontal = scores.black_bars(rows, columns)
        return round(vertical, 5), round(horizontal, 5)


# --- as stored -----------------------------------------------------------------------------------------------


def to_row(key: str, sha256: str, uri: str, found: Scan | str, cpu_s: float = 0.0) -> dict[str, Any]:
    """A scan, or why there is none, as a row of `SCAN_SCHEMA`."""
    row: dict[str, Any] = {"key": key, "sha256": sha256, "uri": uri, "cpu_s": cpu_s, "again": False}
    if isinstance(found, str):
        return row | {"error": found, "info": "{}", "samples": "[]", "late": 0, "untimed": 0} | {n: [] for n in _LISTS}
    info = asdict(found.info) | {name: str(getattr(found.info, name)) for name in _FRACTIONS}
    lists = {name: list(getattr(found, name)) for name in _LISTS}
    samples = json.dumps([[getattr(s, f.name) for f in fields(FrameScores)] for s in found.samples])
    counts = {"late": found.late, "untimed": found.untimed}
    return row | {"error": "", "info": json.dumps(info), "samples": samples} | counts | lists


def from_row(row: dict[str, Any]) -> Scan | None:
    """The scan of a row; None where there is an error instead."""
    if row["error"]:
        return None
    info = json.loads(row["info"])
    return Scan(
        VideoInfo(**info | {name: Fraction(info[name]) for name in _FRACTIONS}),
        tuple(row["pts"]),
        tuple(row["damaged"]),
        tuple(row["still"]),
        tuple((int(a), int(b)) for a, b in row["cuts"]),
        tuple((round(float(v), 5), round(float(h), 5)) for v, h in row["bars"]),
        tuple(FrameScores(*values) for values in json.loads(row["samples"])),
        tuple((int(a), int(b), int(c)) for a, b, c in row["sizes"]),
        row["late"],
        row["untimed"],
    )


_LISTS = ("pts", "damaged", "still", "cuts", "bars", "sizes")
_FRACTIONS = ("pixel_aspect", "time_base")
