"""Scores of a picture or of a pair of pictures: pure functions of small uint8 frames, without a model.

All scores are independent of resolution: shares of the picture, view widths a second, luma from 0 to 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.pictures import Frames

Grey = NDArray[np.uint8]

_DARK, _BRIGHT = 5, 250  # luma at which a pixel counts as clipped
_BAR_LUMA = 24  # most that a black bar may show: 16, and noise
_BAR_STEP = 12  # least by which the picture beside a bar is brighter
_SAME_LUMA = 0.6  # mean absolute difference of two frames below which nothing moved
_BLUR_WINDOW = 11
_FLOW_SIDE = 32  # pixels; at 256 columns, pictures wider than 8:1 have less
_HASH_NOISE = 10.0  # a little more than strong compression adds to a frequency that is not there
_HASH_ORDER = np.array([8 * row + (row + shift) % 8 for shift in range(8) for row in range(8)])


def grey(frame_HWC: Frames) -> Grey:
    """Luma (BT.601 weights) of an RGB picture."""
    return cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def motion(before: Grey, after: Grey, seconds: float) -> float | None:
    """Mean length of the optical flow in view widths a second (DIS, Kroeger et al., arXiv 1603.03590).

    None for a picture with a side below 32 pixels, in which the flow's patches find no room: OpenCV crashes there.
    """
    if min(before.shape) < _FLOW_SIDE:
        return None
    flow = _flow().calc(np.ascontiguousarray(before), np.ascontiguousarray(after), None)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean()) / before.shape[1] / seconds


def blur(picture: Grey) -> float:
    """How little a picture loses when it is blurred again: 0 sharp, 1 nothing to lose.

    Crete-Roffet et al., "The blur effect", SPIE 2007.
    """
    image = picture.astype(np.float32)
    worst = 0.0
    for axis in (0, 1):
        size = (1, _BLUR_WINDOW) if axis == 0 else (_BLUR_WINDOW, 1)
        soft = cv2.blur(image, size, borderType=cv2.BORDER_REFLECT)
        sharp = np.abs(cv2.Sobel(image, cv2.CV_32F, axis, 1 - axis))[2:-1, 2:-1]
        lost = np.maximum(0, sharp - np.abs(cv2.Sobel(soft, cv2.CV_32F, axis, 1 - axis))[2:-1, 2:-1])
        total = float(sharp.sum())
        worst = max(worst, (total - float(lost.sum())) / total if total else 1.0)
    return worst


def exposure(picture: Grey) -> tuple[float, float]:
    """(mean luma from 0 to 1, share of pixels that are clipped to black or white)."""
    clipped = (picture <= _DARK) | (picture >= _BRIGHT)
    return float(picture.mean()) / 255, float(clipped.mean())


def unchanged(before: Grey, after: Grey) -> bool:
    """Whether nothing moved between two successive frames."""
    return float(cv2.absdiff(before, after).mean()) < _SAME_LUMA


def edge_profile(picture: Grey) -> tuple[NDArray[Any], NDArray[Any]]:
    """The luma that the brightest 2 % of each row, and of each column, exceed; it is low in black bars."""
    return np.percentile(picture, 98, axis=1), np.percentile(picture, 98, axis=0)


def black_bars(rows: NDArray[Any], columns: NDArray[Any]) -> tuple[float, float]:
    """(height of the bar at top and bottom, width of that left and right), as shares of the picture's.

    Args:
        rows, columns: the brightest `edge_profile` over a shot.

    Bars lie on both sides, are equally wide and end sharply; a dark sky does none of these.
    """
    return _bar(rows), _bar(columns)


def perceptual_hash(picture: Grey) -> int:
    """64 bits, after pHash: each says whether one of the lowest frequencies of the cosine transform is strong.

    A frequency is strong above a constant, not above the median as in pHash: in soft pictures, what lies around the
    median is noise. Every byte holds low and high frequencies. A picture without contrast has the hash 0.
    """
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < 4:
        return 0
    low = cv2.dct(small)[:8, :8].reshape(-1)
    return int(np.packbits(low[_HASH_ORDER] > _HASH_NOISE).view(">u8")[0])


def tints(frame_HWC: Frames) -> bytes:
    """Mean colours of 8x6 fields: 144 bytes."""
    return cv2.resize(frame_HWC, (8, 6), interpolation=cv2.INTER_AREA).tobytes()


def _bar(profile: NDArray[Any]) -> float:
    size = len(profile)
    lit = np.flatnonzero(profile > _BAR_LUMA)
    if not len(lit):
        return 0.0
    before, after = int(lit[0]), int(size - 1 - lit[-1])
    if (
        min(before, after) < max(2, size // 100)
        or abs(before - after) > max(2, size // 50)
        or before + after > size / 2
    ):
        return 0.0
    for edge, outside in ((before, before - 1), (size - 1 - after, size - after)):
        inside = edge + (1 if edge == before else -1)  # the edge itself may be a mixture
        if profile[inside] - profile[outside] < _BAR_STEP:
            return 0.0
    return (max(before, after) + 1) / size  # with the edge itself


@lru_cache(maxsize=1)
def _flow() -> Any:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
