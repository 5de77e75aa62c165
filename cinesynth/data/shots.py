"""Hard cuts, by PySceneDetect's content detector (mean change of hue, saturation and lightness between frames)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from scenedetect import ContentDetector, FrameTimecode

from cinesynth.config import ShotSettings
from cinesynth.data.video import Frames

SCAN_WIDTH = 256
"""Width of the pictures that the detector sees, in pixels; its own default works at about this size."""


@dataclass(frozen=True)
class ShotSpan:
    """A run of frames without a cut: timestamps in ticks; `end_pts` is where the next shot, or nothing, begins."""

    start_pts: int
    end_pts: int
    pts: tuple[int, ...]


def detect_cuts(frames: Iterable[Frames], settings: ShotSettings) -> list[int]:
    """Indices of the first frame after each hard cut.

    Args:
        frames: small RGB frames of one video, in order; consumed one at a time.
        settings: threshold and shortest shot; detector "none" still consumes the frames and finds no cut.
    """
    # Times are frame numbers (at a nominal rate): the shortest shot counts frames, whatever their duration.
    detector = _CircularHueDetector(threshold=settings.threshold, min_scene_len=settings.min_frames)
    cuts: list[FrameTimecode] = []
    last = None
    for number, frame in enumerate(frames):
        if settings.detector == "none":
            continue
        last = FrameTimecode(number, fps=25.0)
        cuts += detector.process_frame(last, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if last is not None:
        cuts += detector.post_process(last)
    return sorted({cut.frame_num for cut in cuts})


def split_shots(pts: list[int], cuts: list[int]) -> list[ShotSpan]:
    """Shots between cuts. The last frame of all lasts as long as the median frame."""
    if not pts:
        return []
    gaps = sorted(b - a for a, b in pairwise(pts))
    end = pts[-1] + (gaps[len(gaps) // 2] if gaps else 1)
    edges = [0, *cuts, len(pts)]
    return [ShotSpan(pts[a], pts[b] if b < len(pts) else end, tuple(pts[a:b])) for a, b in pairwise(edges)]


class _CircularHueDetector(ContentDetector):
    """PySceneDetect's score, but hues are compared on their circle.

    As numbers, red is both ends: red light that swings to orange would look like a cut.
    """

    _before: Frames | None = None

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: Frames) -> float:
        hsv = cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV)
        before, self._before = self._before, hsv  # type: ignore[assignment]
        if before is None:
            return 0.0
        hue, saturation, value = cv2.split(cv2.absdiff(hsv, before))
        return float(np.minimum(hue, 180 - hue).mean() + saturation.mean() + value.mean()) / 3
