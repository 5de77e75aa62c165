"""Dense optical flow between frames (Farneback, SCIA 2003), with the parameters that Data-Juicer and TecoGAN share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.pictures import Frames

Grey = NDArray[np.uint8]

PARAMETERS: dict[str, Any] = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
PREPROCESSING = "Farneback: " + ", ".join(f"{name} {value}" for name, value in PARAMETERS.items())
"""As the `preprocessing` of a network says it."""

MIN_SIDE = 16
"""Pixels. OpenCV computes smaller pictures too, but then a window of 15 holds all there is."""


def greys(frames_THWC: Frames) -> list[Grey]:
    """Luma (BT.601 weights) [H, W] of each frame, as OpenCV rounds it."""
    import cv2  # not at the top: every job reads the catalogue

    return [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames_THWC)]


def flow(before: Grey, after: Grey) -> NDArray[np.float32]:
    """Where each pixel goes, in pixels: [H, W, 2], x then y. OpenCV takes fewer levels of small pictures."""
    import cv2

    return cv2.calcOpticalFlowFarneback(before, after, None, **PARAMETERS)  # type: ignore[call-overload]


def lengths(vectors_HW2: NDArray[np.floating]) -> NDArray[np.float64]:
    """Euclidean length of each vector."""
    return np.asarray(np.hypot(vectors_HW2[..., 0], vectors_HW2[..., 1], dtype=np.float64))
