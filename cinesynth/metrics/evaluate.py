"""Compare folders of videos with a folder of real ones: the library function `compare` and the job `evaluate`."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cinesynth
from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.data.records import Reject, left_out
from cinesynth.data.video import decoder
from cinesynth.errors import ConfigError, DatasetError, IdentityError, MetricError, WeightsUnavailable
from cinesynth.metrics import catalogue, videos
from cinesynth.metrics.absent_weights import metrics_without_weights
from cinesynth.metrics.extraction import find_rows
from cinesynth.metrics.features import Executor, LocalExecutor
from cinesynth.metrics.kept import KeptWork
from cinesynth.metrics.metric import Metric, Results, Sample
from cinesynth.metrics.record import Definition, MetricsRecord, Value, left_out_warnings
from cinesynth.metrics.split import real_windows
from cinesynth.metrics.statistics import NoInterval, require_groups
from cinesynth.metrics.videos import VideoSet
from cinesynth.metrics.windows import window_rows, write_windows
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
    kept: KeptWork | None = None,
) -> MetricsRecord:
    """Metrics of each arm against the real videos, and the paired differences to the first arm.

    Args:
        real: folder of real videos.
        arms: arm name to folder; the first is the baseline. LPIPS pairs videos by their name without suffix.
        groups: video name to group, for every video; default: each its own group.
        settings: what to compute; default: FVD, KVD and LPIPS (AlexNet) on all frames.
        executor: who runs the networks.
        captions: video name to caption, for metrics that read it.
        kept: kept work of earlier evaluations, which is not done again; what is new is kept there. Default: none.

    Raises:
        DatasetError, MediaError: no videos, unequal lengths, unreadable files, or fewer frames than a metric needs.
        ConfigError: videos without a group or caption, or a GPU that is not there.
        MetricError: a number that counts and is not finite.
        WeightsUnavailable: weights are absent and `settings.require` is set; else the metric says so in the record.
        StorageError: a kept row of other weights (see `KeptRows.read`).
    """
    return measure(real, arms, groups, settings, executor, captions, kept).record


@dataclass(frozen=True)
class Measured:
    """The record, and the samples that it was made of: of each metric, the real one first."""

    record: MetricsRecord
    samples: Mapping[str, list[Sample]]


def measure(
    real: Path,
    arms: Mapping[str, Path],
    groups: Mapping[str, str] | None = None,
    settings: EvaluateSettings | None = None,
    executor: type[Executor] = LocalExecutor,
    captions: Mapping[str, str] | None = None,
    kept: KeptWork | None = None,
) -> Measured:
    """As `compare`, with the samples."""
    settings = settings or EvaluateSettings()
    sets = videos.open_sets({"real": real, **arms}, settings.frames, kept)
    group_of = videos.assign_groups(sets, groups)
    metrics = computable(settings, sets[0].num_frames)
    _check_captions(sets, metrics, captions or {})
    networks = {m.network.name: m.network for m in metrics}
    rows = find_rows(networks.values(), sets, captions or {}, settings, executor, kept)
    found = {name: of.samples(sets, group_of) for name, of in rows.items()}
    samples = {m.name: found[m.network.name] for m in metrics}
    results = [_results(m, sets, samples[m.name]) for m in metrics]
    lengths = (sets[0].num_frames, sets[0].most_frames)
    definitions = {m.name: definition_of(m, settings, lengths, rows[m.network.name].device) for m in metrics}
    comparisons = [comparison for r in results for comparison in r.comparisons]
    record = MetricsRecord(
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
    return Measured(record, samples)


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


def _check_captions(sets: Sequence[VideoSet], metrics: Sequence[Metric], captions: Mapping[str, str]) -> None:
    """Raise ConfigError where a metric reads captions and a video has none."""
    reading = [m.name for m in metrics if m.network.caption]
    missing = sorted({key for s in sets for key in s.files if not captions.get(key)})
    if reading and missing:
        raise ConfigError(f"groups: {reading[0]} reads captions, and {missing[0]} has none; add a column caption")


def _results(metric: Metric, sets: Sequence[VideoSet], samples: Sequence[Sample]) -> Results:
    """What a metric says of the arms that have rows, and why it says nothing of the others.

    Raises MetricError where a number that counts is not finite.
    """
    for videos_of, sample in zip(sets, samples, strict=True):
        _require_finite(metric, videos_of, sample)
    real, *arms = samples
    reasons = {arm.name: real.unavailable or arm.unavailable for arm in arms}
    there = [arm for arm in arms if not reasons[arm.name]]
    found = metric.measure(metric, real, there) if there else Results([], [])
    values = {value.arm: value for value in found.values}
    for arm in arms:
        if reason := reasons[arm.name]:
            counts = {"n_real": len(real.groups), "n": 0, "groups": 0}
            values[arm.name] = Value(metric=metric.name, arm=arm.name, value=None, reason=reason, **counts)
    comparisons = [] if reasons[arms[0].name] else found.comparisons
    return replace(found, values=[values[arm.name] for arm in arms], comparisons=comparisons)


def _require_finite(metric: Metric, of: VideoSet, sample: Sample) -> None:
    first = metric.first_frame if metric.network.d is None else 0
    for name, row in sample.rows.items():
        odd = np.argwhere(~np.isfinite(np.atleast_1d(row)[first:]))
        if len(odd):
            value = np.atleast_1d(row)[first:][tuple(odd[0])]
            place = ", ".join(str(i + (first if axis == 0 else 0)) for axis, i in enumerate(odd[0]))
            raise MetricError(
                f"{metric.label} of {of.files[name]}: {metric.network.label} gives {value:g} at [{place}], which is no "
                f"number to average; look at that video and at the weights, or leave out {metric.name!r}"
            )


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
        weights=_weights_of(metric, settings),
        preprocessing=preprocessing,
        preprocessing_sha256=sha256_json(preprocessing),
        decoder=decoder(),
        dtype=metric.network.dtype,
        device=device,
    )


def _weights_of(metric: Metric, settings: EvaluateSettings) -> dict[str, str]:
    try:
        return metric.network.weights(settings)
    except WeightsUnavailable:  # its values say so
        return {}


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
    [--name NAME] [--storage DIR]`. With one worker and no `ray.address` it needs no Ray. What networks find is kept in
    the storage's `features/`: a killed evaluation, and one with more metrics, computes only what is missing.
    """
    from cinesynth.metrics import distributed
    from cinesynth.report.evaluation import write_evaluation_report  # only the driver loads what makes pages

    storage = Storage.open(config.storage)
    with tempfile.TemporaryDirectory(prefix="cinesynth-evaluate-") as scratch:
        arms = {name: _local(uri, Path(scratch) / name) for name, uri in config.arms.items()}
        real, groups_text, where = Path(scratch) / "real", None, str(config.groups)
        domains: Mapping[str, str] = {}
        if isinstance(config.real, str):
            real = _local(config.real, real)
        else:
            groups_text, domains = real_windows(storage, config.real, arms, real)
            where = f"dataset {config.real.dataset!r}"
        if config.groups:
            groups_text, where = videos.read_groups(config.groups), config.groups
        folders = {"real": real, **arms}
        files = {name: videos.list_videos(name, folder) for name, folder in folders.items()}
        inputs = {name: videos.content_hash(of) for name, of in files.items()}
        inputs["groups"] = "none" if groups_text is None else sha256_json(groups_text)
        inputs |= catalogue.metric_identity(config)
        _check_metrics(config)
        run = Run.open(config, inputs)
        if (done := run.result()) is not None:
            record = MetricsRecord.parse(run.folder.read_json("metrics.json"), run.folder.uri)
            if not metrics_without_weights(record):  # else they may be there by now
                print(record.table(), flush=True)
                return done
        groups = None if groups_text is None else videos.parse_groups(groups_text, where)
        domains = {**domains, **videos.parse_domains(groups_text or "")}
        with distributed.executor_for(config) as executor:
            captions = videos.parse_captions(groups_text or "")
            found = measure(real, arms, groups, config, executor, captions, KeptWork(storage))
        run.folder.write_json("metrics.json", found.record.to_json())
        outputs = {"metrics": run.folder.child("metrics.json").uri}
        outputs |= write_windows(run.folder, window_rows(found.samples, domains))
        outputs["report"] = write_evaluation_report(config, run, found.record, files)
        rejected = videos.rejects(folders, files, any("pair" in d.needs for d in found.record.definitions.values()))
    print(found.record.table(), flush=True)
    return run.finish(outputs, found.record.figures(), left_out([*rejected, *_without_value(found.record)]))


def _without_value(record: MetricsRecord) -> list[Reject]:
    return [
        Reject(f"{record.definitions[value.metric].label} of {value.arm}", "no_value", value.reason or "")
        for value in record.values
        if value.value is None
    ]


def _check_metrics(config: EvaluateConfig) -> None:
    """Raise IdentityError where the run has a metric that is not asked for any more: a run's metrics only grow."""
    run = Run.at(config)
    if not run.folder.exists("run.json"):
        return
    recorded = {name.removeprefix("metric_") for name in run.check(config, with_inputs=False)["inputs"]}
    asked = {m.name for m in catalogue.chosen(config.metrics)}
    if missing := sorted((recorded & catalogue.METRICS.keys()) - asked):
        raise IdentityError(
            f"metrics: the run has {', '.join(missing)}, which is not among {config.metrics}; name it too, "
            f"or use another name than {config.name!r} (what networks found is kept for both)"
        )


def _local(uri: str, scratch: Path) -> Path:
    """The folder itself, or a copy below `scratch` when it is on an object store."""
    storage = Storage.open(uri)
    if storage.is_local:
        return storage.posix_path("evaluation")
    log.info("downloading %s", storage.uri)
    return storage.download_folder("", scratch)
