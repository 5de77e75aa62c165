"""The film look: a fixed grade, grain and a letterbox, drawn over the plain world. The demo's adapter learns it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.plain import PLAIN

_SHADOWS = np.array([-0.045, 0.02, 0.06], np.float32)  # towards teal, RGB
_HIGHLIGHTS = np.array([0.07, 0.01, -0.09], np.float32)  # towards orange
_SATURATION, _BLACK, _GRAIN = 0.8, 0.06, 0.008
_BAR = 1 / 8  # height of each black bar: 3:2 becomes 2:1


def film_look(frames_THWC: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Grade uint8 RGB [T, H, W, 3]; the grain is a pure function of the seed."""
    rng = np.random.default_rng([seed, 1])
    out = np.empty_like(frames_THWC)
    bar = round(_BAR * frames_THWC.shape[1])
    for i, frame in enumerate(frames_THWC):
        graded = _grade(frame.astype(np.float32) / 255)
        grain = cv2.GaussianBlur(rng.standard_normal(frame.shape[:2], np.float32), (0, 0), 0.6)
        graded += (_GRAIN / 0.47 * grain)[..., None]  # the blur leaves 0.47 of the deviation
        graded[:bar] = graded[-bar:] = 0
        out[i] = np.round(np.clip(graded, 0, 1) * 255)
    return out


def _grade(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lifted blacks, a soft S-curve, less saturation, teal shadows and orange highlights; 0..1."""
    luma = (rgb @ np.array([0.2126, 0.7152, 0.0722], np.float32))[..., None]
    toned = luma + _SATURATION * (rgb - luma)
    curved = toned + 0.18 * (toned * toned * (3 - 2 * toned) - toned)
    tinted = curved + (1 - luma) * _SHADOWS + luma * _HIGHLIGHTS
    return _BLACK + (0.97 - _BLACK) * tinted


FILM = replace(PLAIN, finish=lambda frames, seed, fps: film_look(frames, seed))
