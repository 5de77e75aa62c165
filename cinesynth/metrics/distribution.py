"""FVD and KVD: distances between two sets of videos by the logits of I3D (Kinetics-400).

Each is there over all frames, over the first 16, and over the 128 after the first: the lengths of StyleGAN-V's
`fvd2048_16f` and `fvd2048_128f` (universome/stylegan-v). Only KVD over all frames carries the verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics import frechet, mmd
from cinesynth.metrics.frechet import frechet_distance
from cinesynth.metrics.metric import FRAME_0_GIVEN, SHOWN, Item, Metric, Network, Results, Sample, interval_fields
from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.networks import I3D_FEATURES, I3D_MIN_FRAMES, I3D_WEIGHTS
from cinesynth.metrics.paired import NOTHING_SHARED, Pairing, pairing
from cinesynth.metrics.record import Comparison, Floor, Value
from cinesynth.metrics.statistics import Interval, NoInterval, halves, jackknife, require_groups, strata
from cinesynth.metrics.weights import WEIGHTS

if TYPE_CHECKING:
    from cinesynth.config import EvaluateSettings

MIN_GROUPS_OF_A_SET = 2
"""Groups below which a set has no distance to another."""
NO_FVD_INTERVAL = "no valid interval: a Frechet distance is biased by about 1/n"


def _load(settings: EvaluateSettings) -> Any:
    from cinesynth.metrics.networks.i3d import load_i3d

    return load_i3d(settings.weights)


def _run(model: Any, items: Sequence[Item]) -> NDArray[np.floating]:
    from cinesynth.metrics.networks.i3d import logits

    return logits(model, [video for (video,) in items])


def _weights(settings: EvaluateSettings) -> dict[str, str]:
    return {I3D_WEIGHTS: WEIGHTS[I3D_WEIGHTS].sha256}


NETWORK = Network(
    name="i3d",
    label="I3D",
    run=_run,
    load=_load,
    weights=_weights,
    preprocessing={
        "input": f"{SHOWN}; all pixels",
        "resize": "bilinear to 224x224, aspect not kept, half-pixel centres (align_corners=False), no antialiasing",
        "range": "x / 127.5 - 1",
    },
    min_frames=I3D_MIN_FRAMES,
    d=I3D_FEATURES,
)


NETWORK_16F = NETWORK.of_frames(0, 16, "the first 16")
NETWORK_128F = NETWORK.of_frames(1, 128, f"128 from frame 1 on: {FRAME_0_GIVEN}")


def kvd(metric: Metric, real: Sample, arms: Sequence[Sample]) -> Results:
    """KVD of every arm, and its paired difference to the first against the same real set, with jackknife intervals."""
    if reason := _unavailable(real, arms) or _too_few_groups(real, arms):
        return _no_values(metric, real, arms, reason)
    kernels = {arm.name: _kernel(real, arm) for arm in arms}
    values = []
    for arm in arms:
        kernel = kernels[arm.name]
        fields = interval_fields(partial(_kvd_interval, [real, arm], {kernel: 1}))
        values.append(Value(metric=metric.name, arm=arm.name, value=kernel.value(), **fields, **_n(real, arm)))
    return Results(values, [_kvd_difference(metric, real, arm, arms, kernels) for arm in arms[1:]])


def _kernel(real: Sample, arm: Sample) -> KernelSums:
    return KernelSums(real.matrix, arm.matrix, real.row_groups, arm.row_groups)


def _kvd_difference(
    metric: Metric, real: Sample, arm: Sample, arms: Sequence[Sample], whole: Mapping[str, KernelSums]
) -> Comparison:
    """Of an arm and the first, on the videos that all arms have, against all real ones. `whole` is of all videos."""
    pair = pairing({a.name: a.rows for a in arms}, arm.name)
    sides = [arm.only(pair.arm), arms[0].only(pair.baseline)]
    if reason := _nothing_to_compare(sides, pair):
        return _compared(metric, sides, None, {"interval": None, "reason": reason}, pair)
    kernels = [whole[side.name] if side.name not in pair.left_out else _kernel(real, side) for side in sides]
    signs = dict(zip(kernels, (1, -1), strict=True))
    fields = interval_fields(partial(_kvd_interval, [real, *sides], signs))
    return _compared(metric, sides, kernels[0].value() - kernels[1].value(), fields, pair)


def _kvd_interval(sets: Sequence[Sample], signs: Mapping[KernelSums, int]) -> Interval:
    """Interval of the signed sum of some KVD, each group left out of all sets at once."""
    groups = {sample.name: set(sample.row_groups) for sample in sets}
    require_groups({name: len(found) for name, found in groups.items()})
    replicates = []
    for names in strata(*groups.values()):
        parts = [sign * np.array(kernel.leave_out(names)) for kernel, sign in signs.items()]
        replicates.append(np.sum(parts, axis=0).tolist())
    return jackknife(sum(sign * kernel.value() for kernel, sign in signs.items()), replicates)


def fvd(metric: Metric, real: Sample, arms: Sequence[Sample]) -> Results:
    """FVD of every arm beside the floor between two halves of the real set; never an interval. Of a network that gives
    a row for each frame: FID."""
    if reason := _unavailable(real, arms) or _too_few_groups(real, arms):
        return _no_values(metric, real, arms, reason)
    distances = [frechet_distance(real.matrix, arm.matrix, _ddof(metric)) for arm in arms]
    values = []
    for arm, distance in zip(arms, distances, strict=True):
        floor, no_floor = _floor(metric, real, arm)
        n, d = min(len(real.row_groups), len(arm.row_groups)), real.matrix.shape[1]
        small = f"N = {n}{_unit(real)} is below d = {d}: mostly bias" if n < d else ""
        reason = "; ".join(part for part in (NO_FVD_INTERVAL, small, no_floor) if part)
        values.append(
            Value(metric=metric.name, arm=arm.name, value=distance, reason=reason, floor=floor, **_n(real, arm))
        )
    comparisons = [_fvd_difference(metric, real, arm, arms) for arm in arms[1:]]
    return Results(values, comparisons, _fvd_warnings(metric, real, arms))


def _ddof(metric: Metric) -> int:
    return frechet.DDOF if metric.ddof is None else metric.ddof


def _unit(sample: Sample) -> str:
    """What its rows are of, where it is not videos."""
    return " frames" if any(row.ndim > 1 for row in sample.rows.values()) else ""


def _fvd_difference(metric: Metric, real: Sample, arm: Sample, arms: Sequence[Sample]) -> Comparison:
    """Of an arm and the first, on the videos that all arms have: at one N, so that their biases are alike."""
    pair = pairing({a.name: a.rows for a in arms}, arm.name)
    sides = [arm.only(pair.arm), arms[0].only(pair.baseline)]
    if reason := _nothing_to_compare(sides, pair):
        return _compared(metric, sides, None, {"interval": None, "reason": reason}, pair)
    distances = [frechet_distance(real.matrix, side.matrix, _ddof(metric)) for side in sides]
    fields = {"interval": None, "reason": NO_FVD_INTERVAL}
    return _compared(metric, sides, distances[0] - distances[1], fields, pair)


def _floor(metric: Metric, real: Sample, arm: Sample) -> tuple[Floor | None, str]:
    """FVD between two halves of the real set, and between the first of them and as many videos of the arm."""
    try:
        first, second = halves({key: real.groups[key] for key in real.rows})
    except NoInterval as e:
        return None, f"no floor: {e}"
    rows = _take(real, first)
    matched = _matched(arm, second, {real.groups[key] for key in first})
    at_n = frechet_distance(rows, _take(arm, matched), _ddof(metric)) if len(matched) == len(first) else None
    return Floor(value=frechet_distance(rows, _take(real, second), _ddof(metric)), n=len(first), arm=at_n), ""


def _matched(arm: Sample, wanted: Sequence[str], taken: set[str]) -> list[str]:
    """Ids of the arm that stand for the second half of the real set: those of its names, then others by hash; fewer
    where the arm has no more. None is of a group in `taken`, those of the first half."""
    own = [key for key in wanted if key in arm.rows]
    others = [key for key in arm.rows if key not in own and arm.groups[key] not in taken]
    others.sort(key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    return [*own, *others][: len(wanted)]


def _take(sample: Sample, ids: Sequence[str]) -> NDArray[np.float64]:
    return np.concatenate([np.atleast_2d(sample.rows[key]) for key in ids])


def _fvd_warnings(metric: Metric, real: Sample, arms: Sequence[Sample]) -> list[str]:
    counts = {sample.name: len(sample.row_groups) for sample in (real, *arms)}
    shown = ", ".join(f"{name} {n}" for name, n in counts.items())
    d, unit = real.matrix.shape[1], _unit(real) or " videos"
    kernel = {"FVD": "KVD", "FID": "KID"}.get(metric.label[:3])
    advice = f"; compare {kernel} instead" if kernel else ""
    found = []
    if min(counts.values()) < d:
        found.append(f"{metric.label} below {d}{unit} a set is mostly bias ({shown}){advice}")
    if len(set(counts.values())) > 1:
        found.append(f"sets of unequal size ({shown}): {metric.label} values of different n do not compare")
    return found


def _unavailable(real: Sample, arms: Sequence[Sample]) -> str | None:
    """Why a set has no rows: what is missing then (its network's weights) is missing for all sets."""
    return next((sample.unavailable for sample in (real, *arms) if sample.unavailable), None)


def _too_few_groups(real: Sample, arms: Sequence[Sample]) -> str | None:
    """Why sets are not compared as distributions, where one is of a single group: one shot is no distribution."""
    counts = {sample.name: len(set(sample.row_groups)) for sample in (real, *arms)}
    if min(counts.values()) >= MIN_GROUPS_OF_A_SET:
        return None
    (first, count), *others = counts.items()
    told = [f"{first} has {count} group{'' if count == 1 else 's'}", *(f"{name} has {of}" for name, of in others)]
    return f"{', '.join(told)}; at least {MIN_GROUPS_OF_A_SET} are needed"


def _nothing_to_compare(sides: Sequence[Sample], pair: Pairing) -> str | None:
    """Why an arm and the baseline have no difference: the videos that it would rest on are none, or of one group."""
    if not pair.n:
        return NOTHING_SHARED
    few = min(len(set(side.row_groups)) for side in sides) < MIN_GROUPS_OF_A_SET
    return "no comparison: the videos that all arms have are of one group" if few else None


def _no_values(metric: Metric, real: Sample, arms: Sequence[Sample], reason: str) -> Results:
    return Results([Value(metric=metric.name, arm=a.name, value=None, reason=reason, **_n(real, a)) for a in arms], [])


def _n(real: Sample, arm: Sample) -> dict[str, int]:
    return {"n_real": len(real.rows), "n": len(arm.rows), "groups": len(set(arm.row_groups))}


def _compared(
    metric: Metric, sides: Sequence[Sample], difference: float | None, fields: Mapping[str, Any], pair: Pairing
) -> Comparison:
    """The comparison of an arm and the baseline, `sides` with the rows that it takes."""
    arm, baseline = sides
    groups = len({*arm.row_groups, *baseline.row_groups})
    return Comparison.of(
        metric.name, arm.name, baseline.name, difference, n=pair.n, groups=groups, left_out=pair.left_out, **fields
    )


KVD = Metric(
    name="kvd",
    label="KVD",
    version=2,
    description=(
        f"unbiased MMD^2 of I3D (Kinetics-400) logits, kernel (x.y / d + {mmd.COEF0:g})^{mmd.DEGREE}, "
        "over pairs of videos of different groups"
    ),
    network=NETWORK,
    measure=kvd,
    primary=True,
    real=True,
)

FVD = Metric(
    name="fvd",
    label="FVD",
    version=1,
    description="squared Frechet distance of Gaussians fitted to I3D (Kinetics-400) logits",
    network=NETWORK,
    measure=fvd,
    real=True,
    ddof=frechet.DDOF,
)


METRICS = (
    KVD,
    FVD,
    *(metric.of_frames(NETWORK_16F) for metric in (KVD, FVD)),
    *(metric.of_frames(NETWORK_128F) for metric in (KVD, FVD)),
)
