"""CLIP ViT-B/32 (OpenAI): similarity of frames and the caption, and of successive frames; and the distance CLIP-FID.

CLIP-FID (Kynkaanniemi et al., arXiv 2203.06026) is the Frechet distance of sets of frames by CLIP's embeddings, which
are not normalised, as GaParmar/clean-fid @e88c4d6 computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics import weights
from cinesynth.metrics.distribution import fvd
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import SHOWN, Item, Metric, Network
from cinesynth.metrics.networks import CLIP_FEATURES, CLIP_MODEL, CLIP_WEIGHTS

if TYPE_CHECKING:
    from cinesynth.config import EvaluateSettings


def _load(settings: EvaluateSettings) -> Any:
    from cinesynth.metrics.networks.clip import load_clip

    return load_clip(settings.weights)


def _run_text(model: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.clip import text_similarities

    videos, captions = zip(*items, strict=True)
    return text_similarities(model, videos, captions)


def _run_frames(model: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.clip import frame_similarities

    return frame_similarities(model, [video for (video,) in items])


def _run_features(model: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.clip import frame_features

    return frame_features(model, [video for (video,) in items])


def _weights(settings: EvaluateSettings) -> dict[str, str]:
    return weights.pinned(CLIP_WEIGHTS)


FRAMES = Network(
    name="clip_frames",
    label="CLIP",
    run=_run_frames,
    load=_load,
    weights=_weights,
    preprocessing={
        "model": f"{CLIP_MODEL} of open_clip",
        "input": SHOWN,
        "resize": "bicubic (Pillow, antialiased), shorter side to 224, centre crop 224x224",
        "range": "mean and standard deviation of OpenAI's CLIP",
    },
    min_frames=2,
)
TEXT = replace(
    FRAMES,
    name="clip_text",
    label="CLIP text",
    run=_run_text,
    preprocessing={**FRAMES.preprocessing, "text": "the caption as it is, cut off after 77 tokens"},
    caption=True,
    min_frames=1,
)
FEATURES = replace(
    FRAMES,
    name="clip_features",
    label="CLIP features",
    run=_run_features,
    min_frames=1,
    d=CLIP_FEATURES,
)

METRICS = (
    Metric(
        name="clip_sim_text",
        label="CLIP-SIM text",
        version=1,
        description=(
            "cosine of CLIP ViT-B/32 embeddings of each frame and the caption: mean over frames, a group's windows, "
            "groups"
        ),
        network=TEXT,
        measure=group_means,
        direction="higher",
    ),
    Metric(
        name="clip_sim_frames",
        label="CLIP-SIM frames",
        version=1,
        description=(
            "cosine of CLIP ViT-B/32 embeddings of successive frames: mean over frames, a group's windows, groups; "
            "a still video has 1, so better is closer to the real videos' own"
        ),
        network=FRAMES,
        measure=group_means,
        direction="match",
    ),
    Metric(
        name="clip_fid",
        label="CLIP-FID",
        version=1,
        description="squared Frechet distance of Gaussians fitted to CLIP ViT-B/32 image embeddings of all frames",
        network=FEATURES,
        measure=fvd,
        real=True,
        ddof=1,  # clean-fid's covariances
    ),
)
