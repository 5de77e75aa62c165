"""Compare folders of videos with a folder of real ones: the library function `compare` and the job `evaluate`."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import cinesynth
from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.errors import ConfigError, DatasetError
from cinesynth.metrics import catalogue, videos
from cinesynth.metrics.features import Batch, Executor, LocalExecutor, Networks, batches_of, extract
from cinesynth.metrics.metric import Metric, Network, Results, Sample
from cinesynth.metrics.record import Definition, MetricsRecord, left_out_warnings
from cinesynth.metrics.split import real_windows
from cinesynth.metrics.statistics import NoInterval, require_groups
from cinesynth.metrics.videos import VideoSet
from cinesynth.runs import Run, records_its_end
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger("cinesynth.metrics")


def compare(
    real: Path,
    arms: Mapping[str, Path],
    groups: Mapping[str, str] | None = None,
    settings: EvaluateSettings | None = None,
    executor: type[Executor] = LocalExecutor,
    captions: Mapping[str, str] | None = None,
    real_samples: dict[str, Sample] | None = None,
) -> MetricsRecord:
    """Metrics of each arm against the real videos, and the paired differences to the first arm.

    Args:
        real: folder of real videos.
        arms: arm name to folder; the first is the baseline. LPIPS pairs videos by their name without suffix.
        groups: video name to group, for every video; default: each its own group.
        settings: what to compute; default: FVD, KVD and LPIPS (AlexNet) on all frames.
        executor: who runs the networks.
        captions: video name to caption, for metrics that read it.
        real_samples: network to what it found of the real set: taken where it is there, else put there. For callers
            that compare with the same real set again.

    Raises:
        DatasetError, MediaError: no videos, unequal lengths, unreadable files, or fewer frames than a metric needs.
        ConfigError: videos without a group or caption, or a GPU that is not there.
        WeightsUnavailable: see `weights.locate`.
    """
    settings = settings or EvaluateSettings()
    sets = videos.open_sets({"real": real, **arms}, settings.frames)
    group_of = videos.assign_groups(sets, groups)
    metrics = computable(settings, sets[0].num_frames)
    inputs = _Inputs(settings, group_of, captions or {})
    inputs.check_captions(sets, metrics)
    lengths = (sets[0].num_frames, sets[0].most_frames)
    runner = executor(Networks(metrics, settings), settings)
    try:
        results = _measure(sets, metrics, inputs, runner, {} if real_samples is None else real_samples)
    finally:
        runner.close()
    definitions = {m.name: definition_of(m, settings, lengths, runner.device) for m in metrics}
    comparisons = [comparison for r in results for comparison in r.comparisons]
    return MetricsRecord(
        code_version=cinesynth.__version__,
        arms=list(arms),
        definitions=definitions,
        values=[value for r in results for value in r.values],
        comparisons=comparisons,
        warnings=left_out_warnings(comparisons, definitions)
        + [w for r in results for w in r.warnings]
        + _warnings(sets, group_of)
        + videos.notes(sets, any(m.network.pair for m in metrics)),
        environment=_environment(),
    )


def computable(settings: EvaluateSettings, num_frames: int) -> list[Metric]:
    """The metrics to compute of videos with at least `num_frames` frames.

    Raises DatasetError where they are too short for the settings or a metric that was asked for.
    """
    if settings.frames is not None and num_frames < settings.frames:
        raise DatasetError(f"frames = {settings.frames}: the shortest video has {num_frames} frames; lower it")
    num_frames = settings.frames or num_frames
    metrics = catalogue.chosen(settings.metrics)
    short = [m for m in metrics if m.network.frames_needed > num_frames and m.name in settings.metrics]
    if short:
        labels = " and ".join(m.label for m in short) + (" need" if len(short) > 1 else " needs")
        others = [m.name for m in metrics if m.network.frames_needed <= num_frames] or [
            m.name for m in catalogue.METRICS.values() if m.primary and m.network.frames_needed <= num_frames
        ]
        raise DatasetError(
            f"{labels} at least {max(m.network.frames_needed for m in short)} frames a video, these have {num_frames}; "
            f"use longer videos, or metrics=[{', '.join(others)}]"
        )
    return [
        m for m in metrics if m.name in settings.metrics or max(m.first_frame, m.network.frames_needed - 1) < num_frames
    ]


@dataclass(frozen=True)
class _Inputs:
    """What the videos of all sets are run with."""

    settings: EvaluateSettings
    group_of: Mapping[str, str]
    caption_of: Mapping[str, str]

    def check_captions(self, sets: Sequence[VideoSet], metrics: Sequence[Metric]) -> None:
        """Raise ConfigError where a metric reads captions and a video has none."""
        reading = [m.name for m in metrics if m.network.caption]
        missing = sorted({key for s in sets for key in s.files if not self.caption_of.get(key)})
        if reading and missing:
            raise ConfigError(f"groups: {reading[0]} reads captions, and {missing[0]} has none; add a column caption")

    def batches(self, network: Network, items: Mapping[str, tuple[Path, ...]], videos: VideoSet) -> list[Batch]:
        """Batches of items by id of the video in its set."""
        captions = [self.caption_of[key] for key in items] if network.caption else []
        buckets = [videos.buckets[key] for key in items]
        return batches_of(network, list(items.values()), buckets, self.settings.batch_size, captions)


def _measure(
    sets: Sequence[VideoSet],
    metrics: Sequence[Metric],
    inputs: _Inputs,
    executor: Executor,
    real_samples: dict[str, Sample],
) -> list[Results]:
    samples: dict[str, list[Sample]] = {}
    real, *arms = sets
    for network in {m.network.name: m.network for m in metrics}.values():
        if network.name not in real_samples:
            real_samples[network.name] = _sample(network, real, real, inputs, executor)
        made = [_sample(network, real, arm, inputs, executor) for arm in arms]
        samples[network.name] = [real_samples[network.name], *made]
    found = []
    for metric in metrics:
        of_real, *of_arms = samples[metric.network.name]
        found.append(metric.measure(metric, of_real, of_arms))
    return found


def _sample(network: Network, real: VideoSet, videos: VideoSet, inputs: _Inputs, executor: Executor) -> Sample:
    """What a network finds of one set; of pairs it finds nothing in the real set itself."""
    groups = {key: inputs.group_of[key] for key in videos.files}
    items: dict[str, tuple[Path, ...]] = {key: (path,) for key, path in videos.files.items()}
    if network.pair:
        if videos is real:
            return Sample(videos.name, {}, groups)
        items = {key: (real.files[key], path) for key, path in videos.files.items() if key in real.files}
    if reason := _unfit(network, real, videos, list(items)):
        return Sample(videos.name, {}, groups, reason)
    rows = extract(executor, inputs.batches(network, items, videos), f"{network.label} of {videos.name}")
    return Sample(videos.name, dict(zip(items, rows, strict=True)), groups)


def _unfit(network: Network, real: VideoSet, videos: VideoSet, keys: Sequence[str]) -> str | None:
    """Why a network cannot run on these videos of a set."""
    if not keys:
        return f"{network.label} compares pairs, and no video name occurs in both folders"
    for key in keys:
        height, width = videos.sizes[key]
        if network.pair and real.sizes[key] != (height, width):
            real_height, real_width = real.sizes[key]
            files = f"{real.files[key]} is {real_width}x{real_height}, {videos.files[key]} is {width}x{height}"
            return f"{network.label} needs equal sizes: {files}"
        if min(height, width) < network.min_side:
            return f"{network.label} needs sides of at least {network.min_side}: {videos.files[key]} is smaller"
    return None


def definition_of(metric: Metric, settings: EvaluateSettings, num_frames: tuple[int, int], device: str) -> Definition:
    """All that could change a metric's numbers, as the record states it."""
    preprocessing = dict(metric.network.preprocessing)
    return Definition(
        metric=metric.name,
        label=metric.label,
        version=metric.version,
        direction=metric.direction,
        primary=metric.primary,
        needs=list(metric.needs),
        description=metric.description,
        d=metric.network.d,
        ddof=metric.ddof,
        frames=metric.frames(*num_frames),
        weights=metric.network.weights(settings),
        preprocessing=preprocessing,
        preprocessing_sha256=sha256_json(preprocessing),
        decoder=_decoder(),
        dtype=metric.network.dtype,
        device=device,
    )


def _warnings(sets: Sequence[VideoSet], group_of: Mapping[str, str]) -> list[str]:
    real, *arms = sets
    found = []
    try:
        require_groups({s.name: len({group_of[key] for key in s.files}) for s in sets})
    except NoInterval as e:
        found.append(f"no intervals: {e}")
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


@records_its_end
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Compare folders of videos with real ones: metrics with intervals, and which difference is real.

    On any two folders: `python -m jobs.evaluate --real DIR --fake DIR [--fake NAME=DIR] [--groups CSV]
    [--name NAME] [--storage DIR]`. With one worker and no `ray.address` it needs no Ray.
    """
    from cinesynth.metrics import distributed
    from cinesynth.report.evaluation import write_evaluation_report  # only the driver loads what makes pages

    with tempfile.TemporaryDirectory(prefix="cinesynth-evaluate-") as scratch:
        arms = {name: _local(uri, Path(scratch) / name) for name, uri in config.arms.items()}
        real, groups_text, where = Path(scratch) / "real", None, str(config.groups)
        if isinstance(config.real, str):
            real = _local(config.real, real)
        else:
            groups_text = real_windows(Storage.open(config.storage), config.real, arms, real)
            where = f"dataset {config.real.dataset!r}"
        if config.groups:
            groups_text, where = videos.read_groups(config.groups), config.groups
        folders = {"real": real, **arms}
        files = {name: videos.list_videos(name, folder) for name, folder in folders.items()}
        inputs = {name: videos.content_hash(of) for name, of in files.items()}
        inputs["groups"] = "none" if groups_text is None else sha256_json(groups_text)
        inputs |= catalogue.metric_identity(config)
        run = Run.open(config, inputs)
        if (done := run.result()) is not None:
            record = MetricsRecord.parse(run.folder.read_json("metrics.json"), run.folder.uri)
            print(record.table(), flush=True)
            return done
        groups = None if groups_text is None else videos.parse_groups(groups_text, where)
        with distributed.executor_for(config) as executor:
            captions = videos.parse_captions(groups_text or "")
            record = compare(real, arms, groups, config, executor, captions)
        run.folder.write_json("metrics.json", record.to_json())
        outputs = {"metrics": run.folder.child("metrics.json").uri}
        outputs["report"] = write_evaluation_report(config, run, record, files)
    print(record.table(), flush=True)
    return run.finish(outputs, record.figures())


def _local(uri: str, scratch: Path) -> Path:
    """The folder itself, or a copy below `scratch` when it is on an object store."""
    storage = Storage.open(uri)
    if storage.is_local:
        return storage.posix_path("evaluation")
    log.info("downloading %s", storage.uri)
    return storage.download_folder("", scratch)
