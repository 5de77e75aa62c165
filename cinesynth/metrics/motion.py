"""MotionScore: how much moves in a video.

Data-Juicer's `video_motion_score_filter` (datajuicer/data-juicer), with its defaults: Farneback's optical flow in grey
between frames that are half a second apart, and the mean length of its vectors in pixels. Its option to divide by the
frame's diagonal is off by default, and so it is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.flow import MIN_SIDE, PREPROCESSING, flow, greys, lengths
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import SHOWN, Item, Metric, Network

SAMPLED_FPS = 2.0


def sampling_step(fps: float, num_frames: int) -> int:
    """Frames from one that is looked at to the next: half a second, or as far as a shorter video goes."""
    return max(1, min(round(fps / min(SAMPLED_FPS, fps)), num_frames - 1))


def _run(_: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    scores = []
    for frames, fps in items:
        sampled = greys(frames[:: sampling_step(fps, len(frames))])
        scores.append([np.mean([lengths(flow(a, b)).mean() for a, b in pairwise(sampled)])])
    return np.array(scores)


NETWORK = Network(
    name="motion_score",
    label="MotionScore",
    run=_run,
    preprocessing={
        "input": f"{SHOWN}; all pixels, grey",
        "frames": f"{SAMPLED_FPS:g} a second, from the first on",
        "flow": PREPROCESSING,
    },
    fps=True,
    min_frames=2,
    min_side=MIN_SIDE,
    dtype="float32 flow, float64 statistics",
)

METRICS = (
    Metric(
        name="motion_score",
        label="MotionScore",
        version=1,
        description="mean length of the optical flow between frames half a second apart, in pixels (Data-Juicer)",
        network=NETWORK,
        measure=group_means,
        direction="match",
        beside=("tssim", "flicker", "clip_sim_frames"),  # a frozen video maximises these
    ),
)
