"""Compare folders of videos with a folder of real ones: the library function `compare` and the job `evaluate`."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import cinesynth
from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.errors import DatasetError
from cinesynth.metrics import features, frechet, i3d, lpips, mmd, values
from cinesynth.metrics.features import Executor, LocalExecutor, Networks, VideoSet, batches_of, extract
from cinesynth.metrics.record import Comparison, Definition, MetricsRecord, Value
from cinesynth.metrics.weights import WEIGHTS
from cinesynth.runs import Run
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger("cinesynth.metrics")

LATE = 8  # first frame of `lpips_late`: what is left when the given first frame no longer helps
VERSIONS = {"fvd": 1, "kvd": 2, "lpips": 1, "lpips_late": 1}


def compare(
    real: Path,
    arms: Mapping[str, Path],
    groups: Mapping[str, str] | None = None,
    settings: EvaluateSettings | None = None,
    executor: type[Executor] = LocalExecutor,
) -> MetricsRecord:
    """Metrics of each arm against the real videos, and the paired differences to the first arm.

    Args:
        real: folder of real videos.
        arms: arm name to folder; the first is the baseline. LPIPS pairs videos by their name without suffix.
        groups: video name to group, for every video; default: each its own group.
        settings: what to compute; default: FVD, KVD and LPIPS (AlexNet) on all frames.
        executor: who runs the networks.

    Raises:
        DatasetError, MediaError: no videos, unequal lengths, unreadable files, or fewer than 10 frames for FVD or KVD.
        ConfigError: videos without a group, or a GPU that is not there.
        WeightsUnavailable: see `weights.locate`.
    """
    settings = settings or EvaluateSettings()
    sets = features.open_sets({"real": real, **arms}, settings.frames)
    group_of = features.assign_groups(sets, groups)
    num_frames = sets[0].num_frames
    if num_frames < i3d.MIN_FRAMES and set(settings.metrics) & set(features.DISTRIBUTION_METRICS):
        raise DatasetError(
            f"FVD and KVD need at least {i3d.MIN_FRAMES} frames a video, these have {num_frames}; "
            "use longer videos, or metrics=[lpips]"
        )
    runner = executor(Networks(settings), settings)
    try:
        found_values, found_comparisons = _measure(sets, group_of, settings, runner)
    finally:
        runner.close()
    return MetricsRecord(
        code_version=cinesynth.__version__,
        arms=list(arms),
        definitions=_definitions({v.metric for v in found_values}, settings, num_frames, runner.device),
        values=found_values,
        comparisons=found_comparisons,
        warnings=_warnings(sets, settings, group_of),
        environment=_environment(),
    )


def _measure(
    sets: Sequence[VideoSet], group_of: Mapping[str, str], settings: EvaluateSettings, executor: Executor
) -> values.Results:
    found_values: list[Value] = []
    found_comparisons: list[Comparison] = []

    def add(results: values.Results) -> None:
        found_values.extend(results[0])
        found_comparisons.extend(results[1])

    if set(settings.metrics) & set(features.DISTRIBUTION_METRICS):
        real, *arms = _samples(sets, group_of, settings, executor)
        if "fvd" in settings.metrics:
            add(values.fvd(real, arms))
        if "kvd" in settings.metrics:
            add(values.kvd(real, arms))
    if "lpips" in settings.metrics:
        distances = [_distances(sets[0], arm, settings, executor) for arm in sets[1:]]
        add(values.lpips("lpips", 1, len(sets[0].files), distances, group_of))
        if sets[0].num_frames > LATE:
            add(values.lpips("lpips_late", LATE, len(sets[0].files), distances, group_of))
    return found_values, found_comparisons


def _samples(
    sets: Sequence[VideoSet], group_of: Mapping[str, str], settings: EvaluateSettings, executor: Executor
) -> list[values.Sample]:
    samples = []
    for s in sets:
        items = [(path,) for path in s.files.values()]
        rows = extract(executor, batches_of("i3d", items, s.num_frames, settings.batch_size), f"I3D of {s.name}")
        samples.append(values.Sample(s.name, list(s.files), rows, [group_of[key] for key in s.files]))
    return samples


def _distances(real: VideoSet, arm: VideoSet, settings: EvaluateSettings, executor: Executor) -> values.Distances:
    """LPIPS per frame of every pair; nothing, with the reason, where the two sets cannot be paired."""
    paired = [key for key in arm.files if key in real.files]
    if not paired:
        return values.Distances(arm.name, {}, "LPIPS compares pairs, and no video name occurs in both folders")
    for key in paired:
        if real.sizes[key] != arm.sizes[key]:
            (h, w), (arm_h, arm_w) = real.sizes[key], arm.sizes[key]
            reason = f"LPIPS needs equal sizes: {real.files[key]} is {w}x{h}, {arm.files[key]} is {arm_w}x{arm_h}"
            return values.Distances(arm.name, {}, reason)
        if min(real.sizes[key]) < lpips.MIN_SIDE:
            reason = f"LPIPS needs sides of at least {lpips.MIN_SIDE}: {real.files[key]} is smaller"
            return values.Distances(arm.name, {}, reason)
    items = [(real.files[key], arm.files[key]) for key in paired]
    batches = batches_of("lpips", items, real.num_frames, settings.batch_size)
    rows = extract(executor, batches, f"LPIPS of {arm.name}")
    return values.Distances(arm.name, dict(zip(paired, rows, strict=True)))


def _definitions(metrics: set[str], settings: EvaluateSettings, num_frames: int, device: str) -> dict[str, Definition]:
    net = settings.lpips_net
    i3d_weights = {i3d.WEIGHTS: WEIGHTS[i3d.WEIGHTS].sha256}
    lpips_weights = {
        f"lpips-{net}": WEIGHTS[f"lpips-{net}"].sha256,
        f"lpips-{net}-heads": lpips.head_sha256(net),
    }
    gaussian = "squared Frechet distance of Gaussians fitted to I3D (Kinetics-400) logits"
    kernel = f"unbiased MMD^2 of I3D (Kinetics-400) logits, kernel (x.y / d + {mmd.COEF0:g})^{mmd.DEGREE}, "
    kernel += "over pairs of videos of different groups"
    distance = f"LPIPS v0.1 ({net}) to the paired real frame: mean over frames, a group's windows, groups"
    specific: dict[str, dict[str, Any]] = {
        "fvd": {"description": gaussian, "d": i3d.FEATURES, "ddof": frechet.DDOF, "weights": i3d_weights},
        "kvd": {"description": kernel, "d": i3d.FEATURES, "weights": i3d_weights},
        "lpips": {
            "description": distance,
            "weights": lpips_weights,
            "frames": f"1 to {num_frames - 1}; frame 0 is given to an image-to-video model",
        },
        "lpips_late": {"description": distance, "weights": lpips_weights, "frames": f"{LATE} to {num_frames - 1}"},
    }
    definitions = {}
    for name in sorted(metrics):
        preprocessing = i3d.PREPROCESSING if name in features.DISTRIBUTION_METRICS else lpips.PREPROCESSING
        common = {
            "metric": name,
            "version": VERSIONS[name],
            "frames": f"0 to {num_frames - 1}",
            "preprocessing": preprocessing,
            "preprocessing_sha256": sha256_json(preprocessing),
            "decoder": _decoder(),
            "dtype": "float32 networks without TF32, float64 statistics",
            "device": device,
        }
        definitions[name] = Definition(**{**common, **specific[name]})
    return definitions


def _warnings(sets: Sequence[VideoSet], settings: EvaluateSettings, group_of: Mapping[str, str]) -> list[str]:
    real, *arms = sets
    found = []
    counts = {s.name: len(s.files) for s in sets}
    shown = ", ".join(f"{name} {n}" for name, n in counts.items())
    if "fvd" in settings.metrics:
        if min(counts.values()) < i3d.FEATURES:
            found.append(f"FVD below {i3d.FEATURES} videos a set is mostly bias ({shown}); compare KVD instead")
        if len(set(counts.values())) > 1:
            found.append(f"sets of unequal size ({shown}): FVD values of different n do not compare")
    groups = len({group_of[key] for key in real.files})
    if groups < 10:
        found.append(f"only {groups} groups of real videos: intervals are wide and rough")
    for arm in arms:
        if arm.fps != real.fps:
            found.append(f"{arm.name} has {_listed(arm.fps)} fps, real {_listed(real.fps)}: motion does not compare")
        if arm.codecs != real.codecs:
            found.append(
                f"{arm.name} is {_listed(arm.codecs)}, real {_listed(real.codecs)}: "
                "a codec's loss is counted as the model's; use one codec for all"
            )
    return found


def _listed(items: frozenset[Any]) -> str:
    return " and ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in sorted(items))


def _decoder() -> str:
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}, rgb24"


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Compare folders of videos with real ones: FVD, KVD and LPIPS with intervals, and which difference is real.

    On any two folders: `python -m jobs.evaluate --real DIR --fake DIR [--fake NAME=DIR] [--groups CSV]
    [--name NAME] [--storage DIR]`. With one worker and no `ray.address` it needs no Ray.
    """
    from cinesynth.metrics import distributed

    with tempfile.TemporaryDirectory(prefix="cinesynth-evaluate-") as scratch:
        folders = {
            name: _local(uri, Path(scratch) / name) for name, uri in {"real": config.real, **config.arms}.items()
        }
        groups_text = Storage.open(config.groups).read_text("") if config.groups else None
        inputs = {name: features.content_hash(features.list_videos(name, f)) for name, f in folders.items()}
        if groups_text is not None:
            inputs["groups"] = sha256_json(groups_text)
        run = Run.open(config, inputs)
        if (done := run.result()) is not None:
            record = MetricsRecord.parse(run.folder.read_json("metrics.json"), run.folder.uri)
            print(record.table(), flush=True)
            return done
        groups = None if groups_text is None else features.parse_groups(groups_text, str(config.groups))
        arms = {name: folders[name] for name in config.arms}
        with distributed.executor_for(config) as executor:
            record = compare(folders["real"], arms, groups, config, executor)
    run.folder.write_json("metrics.json", record.to_json())
    print(record.table(), flush=True)
    return run.finish({"metrics": run.folder.child("metrics.json").uri}, record.figures())


def _local(uri: str, scratch: Path) -> Path:
    """The folder itself, or a copy below `scratch` when it is on an object store."""
    storage = Storage.open(uri)
    if storage.is_local:
        return storage.posix_path("evaluation")
    log.info("downloading %s", storage.uri)
    return storage.download_folder("", scratch)
