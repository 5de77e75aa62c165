"""FID and KID: distances between the frames of two sets of videos by the features of Inception-v3 of 2015.

As toshas/torch-fidelity @5e211a9 defines them, on all frames of all videos. KID differs from it in which pairs count:
torch-fidelity averages 100 random subsets of 1000 frames each, in which frames of one video meet; here pairs of all
frames count whose videos are of different groups, for the reason that `mmd` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics import mmd, weights
from cinesynth.metrics.distribution import fvd, kvd
from cinesynth.metrics.metric import SHOWN, Item, Metric, Network
from cinesynth.metrics.networks import INCEPTION_FEATURES, INCEPTION_WEIGHTS

if TYPE_CHECKING:
    from cinesynth.config import EvaluateSettings

DDOF = 1
"""Torch-fidelity divides the covariance by N - 1."""


def _load(settings: EvaluateSettings) -> Any:
    from cinesynth.metrics.networks.inception import load_inception

    return load_inception(settings.weights)


def _run(model: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.inception import frame_features

    return frame_features(model, [video for (video,) in items])


def _weights(settings: EvaluateSettings) -> dict[str, str]:
    return weights.pinned(INCEPTION_WEIGHTS)


NETWORK = Network(
    name="inception",
    label="Inception",
    run=_run,
    load=_load,
    weights=_weights,
    preprocessing={
        "input": f"{SHOWN}; all pixels of every frame",
        "resize": "bilinear to 299x299 as TensorFlow 1: pixel i lies at i * side / 299 (no half-pixel centres), aspect "
        "not kept, no antialiasing",
        "range": "(x - 128) / 128",
    },
    d=INCEPTION_FEATURES,
)
NETWORK_128F = NETWORK.of_frames(1, 128, "128 from frame 1 on: frame 0 is given")

FID = Metric(
    name="fid",
    label="FID",
    version=1,
    description="squared Frechet distance of Gaussians fitted to Inception-2015 features [2048] of all frames",
    network=NETWORK,
    measure=fvd,
    real=True,
    ddof=DDOF,
)
KID = Metric(
    name="kid",
    label="KID",
    version=1,
    description=(
        f"unbiased MMD^2 of Inception-2015 features [2048] of all frames (no random subsets), kernel "
        f"(x.y / d + {mmd.COEF0:g})^{mmd.DEGREE}, over pairs of frames of videos of different groups"
    ),
    network=NETWORK,
    measure=kvd,
    real=True,
)

METRICS = (
    FID,
    KID,
    *(metric.of_frames(NETWORK_128F) for metric in (FID, KID)),
)
