"""How frames follow each other: against the real video of the same name (tOF, tLP), and in a video alone (flicker).

tOF and tLP are those of TecoGAN (Chu et al., arXiv 1811.09393; `metrics.py` of thunil/TecoGAN) over all pixels and all
pairs of consecutive frames but the first, where upstream leaves a border and the two frames at each end out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics import perceptual
from cinesynth.metrics.flow import MIN_SIDE, PREPROCESSING, flow, greys, lengths
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import FRAME_0_GIVEN, SHOWN, Item, Metric, Network

if TYPE_CHECKING:
    from cinesynth.pictures import Frames


def _tof(_: Any, pairs: Sequence[Item]) -> NDArray[np.floating]:
    return np.array([[lengths(a - b).mean() for a, b in zip(*map(_flows, pair), strict=True)] for pair in pairs])


def _flows(frames_THWC: Frames) -> list[NDArray[np.float32]]:
    """Flow from each frame to the next."""
    return [flow(before, after) for before, after in pairwise(greys(frames_THWC))]


def _tlp(model: Any, pairs: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.lpips import frame_distances

    changes = [[frame_distances(model, frames[:-1], frames[1:]) for frames in pair] for pair in pairs]
    return np.array([np.abs(real - fake) for real, fake in changes])


def _flicker(_: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    return np.array([[_sameness(a, b) for a, b in pairwise(frames)] for (frames,) in items])


def _sameness(a: Frames, b: Frames) -> float:
    """1 for equal pictures, 0 for black and white."""
    return 1 - float(np.abs(a.astype(np.int16) - b).mean()) / 255


TOF = Network(
    name="tof",
    label="tOF",
    run=_tof,
    preprocessing={"input": f"{SHOWN}; all pixels, grey", "flow": PREPROCESSING},
    pair=True,
    min_frames=3,
    min_side=MIN_SIDE,
    dtype="float32 flow, float64 statistics",
)

TLP = Network(
    name="tlp",
    label="tLP",
    run=_tlp,
    load=perceptual.NETWORK.load,
    weights=perceptual.NETWORK.weights,
    preprocessing=perceptual.NETWORK.preprocessing,
    pair=True,
    min_frames=3,
    min_side=perceptual.NETWORK.min_side,
)

FLICKER = Network(
    name="flicker",
    label="flicker",
    run=_flicker,
    preprocessing={"input": f"{SHOWN}; all pixels and channels"},
    min_frames=2,
    dtype="float64",
)

METRICS = (
    Metric(
        name="tof",
        label="tOF",
        version=1,
        description="mean length of the difference of the real and the generated video's optical flow, in pixels",
        network=TOF,
        measure=group_means,
        first_frame=1,
        frames_note=f"from each to the next; {FRAME_0_GIVEN}",
    ),
    Metric(
        name="tlp",
        label="tLP",
        version=1,
        description="|LPIPS of a real frame and the next - the same of the generated ones| (AlexNet, not times 100)",
        network=TLP,
        measure=group_means,
        first_frame=1,
        frames_note=f"from each to the next; {FRAME_0_GIVEN}",
    ),
    Metric(
        name="flicker",
        label="temporal flickering",
        version=1,
        description="(255 - mean absolute difference of each frame and the next) / 255 (VBench's temporal_flickering)",
        network=FLICKER,
        measure=group_means,
        direction="match",  # a frozen video has 1, more than any real one
    ),
)
