"""Which camera move a video shows, from its optical flow."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.rendering import PAN_SPEED, ROLL_SPEED, ZOOM_SPEED
from cinesynth.wan.family import WAN21_I2V

_GAP = 4  # frames between the two of a pair: a quarter of a second, in which a pan moves 3.5 pixels of 64 rows
_OUTLIER = 0.5  # pixels from the fit at which a flow vector counts a quarter
_STILL = 0.5  # of the move's nominal speed


def camera_speeds(frames_THWC: NDArray[np.uint8], fps: float = WAN21_I2V.fps) -> dict[str, float]:
    """Speeds per second of the picture's dominant motion: pan and tilt (camera right and down, in view heights),
    zoom (logarithm) and roll (camera clockwise, radians).

    Dense flow (DIS, Kroeger et al., arXiv 1603.03590) is taken between frames of even local contrast. A similarity is
    fitted to it by weighted least squares: structure has weight, outliers lose theirs. The median over pairs counts.
    """
    height, width = frames_THWC.shape[1:3]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [_even_contrast(frame) for frame in frames_THWC]
    y, x = np.mgrid[3 : height - 3 : 2, 3 : width - 3 : 2].reshape(2, -1)
    fitted = []
    for before, after in zip(grey[:-_GAP:2], grey[_GAP::2], strict=True):
        vectors = flow.calc(before, after, None)[y, x]  # type: ignore[call-overload]
        fitted.append(_fit(vectors, _structure(before)[y, x], x - (width - 1) / 2, y - (height - 1) / 2))
    scaled = np.array([(-dx / height, -dy / height, zoom, -turn) for dx, dy, zoom, turn in fitted])
    pan, tilt, zoom, roll = np.median(scaled, 0) * fps / _GAP
    return {"pan": float(pan), "tilt": float(tilt), "zoom": float(zoom), "roll": float(roll)}


def camera_move(frames_THWC: NDArray[np.uint8], fps: float = WAN21_I2V.fps) -> str:
    """The name, as in `CAMERAS`, of the largest speed in units of the scripted clips' own; `static` below half."""
    speeds = camera_speeds(frames_THWC, fps)
    shares = {
        "pan": speeds["pan"] / PAN_SPEED,
        "tilt": speeds["tilt"] / PAN_SPEED,
        "zoom": speeds["zoom"] / ZOOM_SPEED,
        "roll": speeds["roll"] / ROLL_SPEED,
    }
    name = max(shares, key=lambda key: abs(shares[key]))
    if abs(shares[name]) < _STILL:
        return "static"
    forth, back = {
        "pan": ("pan right", "pan left"),
        "tilt": ("tilt down", "tilt up"),
        "zoom": ("push in", "pull out"),
        "roll": ("roll clockwise", "roll counterclockwise"),
    }[name]
    return forth if shares[name] > 0 else back


def _even_contrast(frame_HWC: NDArray[np.uint8], deviation: float = 8.0) -> NDArray[np.uint8]:
    """The frame in grey, without its local mean and contrast, so that changing light is not taken for motion."""
    grey = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    centred = grey - cv2.GaussianBlur(grey, (0, 0), deviation)
    contrast = np.sqrt(cv2.GaussianBlur(centred**2, (0, 0), deviation)) + 1.5
    return np.clip(centred / contrast * 50 + 128, 0, 255).astype(np.uint8)


def _structure(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Local gradient energy."""
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return cv2.GaussianBlur(dx * dx + dy * dy, (0, 0), 1.5)  # type: ignore[return-value]


def _fit(flow: NDArray[Any], structure: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> tuple[float, ...]:
    """(dx, dy, logarithm of the scale, turn) of the similarity about the centre that flow vectors [N, 2] follow."""
    zero, one = np.zeros_like(x), np.ones_like(x)
    design = np.stack([np.stack([x, -y, one, zero], -1), np.stack([y, x, zero, one], -1)], 1)
    given = structure / (structure + np.median(structure) + 1)
    weight = given
    for _ in range(8):
        root = np.sqrt(weight)[:, None]
        found, *_ = np.linalg.lstsq((design * root[..., None]).reshape(-1, 4), (flow * root).reshape(-1), rcond=None)
        residual = np.linalg.norm(flow - design @ found, axis=1)
        weight = given / (1 + (residual / _OUTLIER) ** 2) ** 2
    a, b, dx, dy = found
    return dx, dy, math.log(max(math.hypot(1 + a, b), 1e-6)), math.atan2(b, 1 + a)
