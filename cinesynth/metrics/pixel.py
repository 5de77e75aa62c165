"""PSNR and SSIM of a video to the real one of the same name, and TSSIM, the SSIM of consecutive frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import FRAME_0_GIVEN, SHOWN, Item, Metric, Network
from cinesynth.metrics.ssim import GAUSSIAN, UNIFORM, ssim
from cinesynth.pictures import Frames

MOST_DB = 100.0
"""PSNR of equal frames, which would be infinite (JunyaoHu/common_metrics_on_video_quality), and the most of any."""

_LUMA = np.array([0.2125, 0.7154, 0.0721])  # BT.709, as scikit-image's rgb2gray takes it
_DTYPE = "float64"


def _psnr(_: Any, pairs: Sequence[Item]) -> NDArray[np.floating]:
    return np.array([[psnr(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs])


def psnr(a: Frames, b: Frames) -> float:
    """10 log10(255^2 / mean squared difference over pixels and channels) of two uint8 pictures: dB, at most 100."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return MOST_DB if not error else min(MOST_DB, 10 * np.log10(255**2 / error))


def _ssim(_: Any, pairs: Sequence[Item]) -> NDArray[np.floating]:
    return np.array([[ssim(a / 255, b / 255, GAUSSIAN) for a, b in zip(*pair, strict=True)] for pair in pairs])


def _tssim(_: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    return np.array([[ssim(a, b, UNIFORM) for a, b in pairwise(_greys(frames))] for (frames,) in items])


def _greys(frames_THWC: Frames) -> list[NDArray[np.float64]]:
    """Luma in [0, 1] of each frame."""
    return [frame / 255 @ _LUMA for frame in frames_THWC]


PSNR = Network(
    name="psnr",
    label="PSNR",
    run=_psnr,
    preprocessing={"input": f"{SHOWN}; all pixels and channels", "most": f"{MOST_DB:g} dB"},
    pair=True,
    dtype=_DTYPE,
)

SSIM = Network(
    name="ssim",
    label="SSIM",
    run=_ssim,
    preprocessing={
        "input": f"{SHOWN}; all pixels, each channel",
        "range": "x / 255",
        "window": "Gaussian, 11x11, deviation 1.5, inside the picture; C1 = 0.01^2, C2 = 0.03^2; biased covariance",
    },
    pair=True,
    min_side=GAUSSIAN.side,
    dtype=_DTYPE,
)

TSSIM = Network(
    name="tssim",
    label="TSSIM",
    run=_tssim,
    preprocessing={
        "input": f"{SHOWN}; all pixels, 0.2125 R + 0.7154 G + 0.0721 B",
        "range": "x / 255, data range 1",
        "window": "uniform, 7x7, inside the picture; C1 = 0.01^2, C2 = 0.03^2; sample covariance",
    },
    min_frames=2,
    min_side=UNIFORM.side,
    dtype=_DTYPE,
)

METRICS = (
    Metric(
        name="psnr",
        label="PSNR",
        version=1,
        description="peak signal-to-noise ratio to the paired real frame, in dB",
        network=PSNR,
        measure=group_means,
        direction="higher",
        first_frame=1,
        frames_note=FRAME_0_GIVEN,
    ),
    Metric(
        name="ssim",
        label="SSIM",
        version=1,
        description="structural similarity (Wang et al., 2004) to the paired real frame, mean over the RGB channels",
        network=SSIM,
        measure=group_means,
        direction="higher",
        first_frame=1,
        frames_note=FRAME_0_GIVEN,
    ),
    Metric(
        name="tssim",
        label="TSSIM",
        version=1,
        description="SSIM in grey of each frame and the next (VideoScore's ssim_inter_frame, with data range 1)",
        network=TSSIM,
        measure=group_means,
        direction="match",  # a frozen video has 1, more than any real one
    ),
)
