"""LPIPS v0.1 (Zhang et al., arXiv 1801.03924): perceptual distance of a video to the real one of the same name.

R-LPIPS (Ghazanfari et al., arXiv 2307.15157) is the same network with adversarially trained weights, which a user
gives. ST-LPIPS (Ghildyal and Liu, arXiv 2207.13686) is another network, tolerant to shifts by a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import FRAME_0_GIVEN, SHOWN, Item, Metric, Network
from cinesynth.metrics.networks import LPIPS_MIN_SIDE, ST_LPIPS_WEIGHTS
from cinesynth.metrics.weights import WEIGHTS
from cinesynth.storage import sha256_file

if TYPE_CHECKING:
    from cinesynth.config import EvaluateSettings
    from cinesynth.metrics.networks.lpips import Net

LATE = 8  # by then the given first frame no longer helps


def head_sha256(net: Net) -> str:
    """Sha256 of the linear heads that the installed `lpips` package carries."""
    spec = find_spec("lpips")
    assert spec is not None
    assert spec.origin is not None
    return sha256_file(Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth")


def _weights(net: Net, settings: EvaluateSettings) -> dict[str, str]:
    name = f"lpips-{net}"
    return {name: WEIGHTS[name].sha256, f"{name}-heads": head_sha256(net)}


def _load(net: Net, settings: EvaluateSettings) -> Any:
    from cinesynth.metrics.networks.lpips import load_lpips

    return load_lpips(net, settings.weights)


def _run(model: Any, pairs: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.lpips import pair_distances

    return pair_distances(model, pairs)


def _robust_weights(settings: EvaluateSettings) -> dict[str, str]:
    return {"r-lpips": sha256_file(str(settings.r_lpips_weights)), "lpips-alex": WEIGHTS["lpips-alex"].sha256}


def _load_robust(settings: EvaluateSettings) -> Any:
    from cinesynth.metrics.networks.lpips import load_published

    return load_published(str(settings.r_lpips_weights), "alex", settings.weights)


def _shift_tolerant_weights(settings: EvaluateSettings) -> dict[str, str]:
    return {ST_LPIPS_WEIGHTS: WEIGHTS[ST_LPIPS_WEIGHTS].sha256}


def _load_shift_tolerant(settings: EvaluateSettings) -> Any:
    from cinesynth.metrics.networks.stlpips import load_st_lpips

    return load_st_lpips(settings.weights)


NETWORK = Network(
    name="lpips",
    label="LPIPS",
    run=_run,
    load=partial(_load, "alex"),
    weights=partial(_weights, "alex"),
    preprocessing={"input": f"{SHOWN}; all pixels, no resize", "range": "x / 127.5 - 1"},
    pair=True,
    min_side=LPIPS_MIN_SIDE,
)

VGG = replace(
    NETWORK, name="lpips_vgg", label="LPIPS (VGG-16)", load=partial(_load, "vgg"), weights=partial(_weights, "vgg")
)

ROBUST = replace(NETWORK, name="r_lpips", label="R-LPIPS", load=_load_robust, weights=_robust_weights)

SHIFT_TOLERANT = replace(
    NETWORK, name="st_lpips", label="ST-LPIPS", load=_load_shift_tolerant, weights=_shift_tolerant_weights
)

_DESCRIPTION = "LPIPS v0.1 to the paired real frame: mean over frames, a group's windows, groups"

METRICS = (
    Metric(
        name="lpips",
        label="LPIPS",
        version=1,
        description=_DESCRIPTION,
        network=NETWORK,
        measure=group_means,
        primary=True,
        first_frame=1,
        frames_note=FRAME_0_GIVEN,
    ),
    Metric(
        name="lpips_late",
        label="late LPIPS",
        version=1,
        description=_DESCRIPTION,
        network=NETWORK,
        measure=group_means,
        first_frame=LATE,
        beside=("lpips",),
    ),
    Metric(
        name="lpips_vgg",
        label="LPIPS (VGG-16)",
        version=1,
        description=_DESCRIPTION.replace("v0.1", "v0.1 (VGG-16)"),
        network=VGG,
        measure=group_means,
        first_frame=1,
        frames_note=FRAME_0_GIVEN,
    ),
    Metric(
        name="r_lpips",
        label="R-LPIPS",
        version=1,
        description="LPIPS (AlexNet) with adversarially trained weights (`r_lpips_weights`), to the paired real frame",
        network=ROBUST,
        measure=group_means,
        first_frame=1,
        frames_note=FRAME_0_GIVEN,
    ),
    Metric(
        name="st_lpips",
        label="ST-LPIPS",
        version=1,
        description="ST-LPIPS (AlexNet) to the paired real frame",
        network=SHIFT_TOLERANT,
        measure=group_means,
        first_frame=1,
        frames_note=FRAME_0_GIVEN,
    ),
)
