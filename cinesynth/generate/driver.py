"""Generation on Ray: shots from images and prompts, or every held-out window in each arm, such as without and with an
adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from cinesynth.config import GenerateConfig
from cinesynth.data.dataset import ClipsDataset, WindowRow
from cinesynth.generate.windows import GROUPS, copy_real, held_out_windows, settle_windows
from cinesynth.generate.worker import GenerateWorker
from cinesynth.lease import Lease, held
from cinesynth.locate import adapter_chain, locate_adapter, locate_dataset
from cinesynth.pictures import check_picture
from cinesynth.runs import Run, records_its_end
from cinesynth.session import ray_session
from cinesynth.storage import Storage, sha256_file, sha256_json
from cinesynth.wan.card import check_adapters
from cinesynth.wan.folder import base_hash, model_hash, model_spec

log = logging.getLogger("cinesynth.generate")


class Applied(NamedTuple):
    """An adapter of an arm."""

    ref: str
    folder: Path
    scale: float


Arms = dict[str, list[Applied]]
"""Arm name to its adapters in the order they are applied, with those that they were trained on."""

Checked = tuple[Arms, ClipsDataset | None, dict[str, str]]


def check_generation(config: GenerateConfig) -> Checked:
    """Check model, adapters, sizes and dataset without Ray.

    Returns the adapters of each arm, the dataset where windows are made again, and the hashes of what is read.
    Raises CinesynthError.
    """
    if config.sampler.negative_prompt and config.sampler.guidance_scale <= 1:
        log.warning(
            "sampler.negative_prompt is not used: with guidance_scale %g there is no guidance; set it above 1",
            config.sampler.guidance_scale,
        )
    storage = Storage.open(config.storage)
    inputs = {"model": model_hash(config.model)}
    spec = model_spec(config.model)
    arms: Arms = {}
    for arm, adapters in config.adapters_by_arm().items():
        chain = adapter_chain(storage, [(a.ref, a.scale) for a in adapters])
        arms[arm] = [Applied(ref, locate_adapter(storage, ref), scale) for ref, scale in chain]
        loaded = check_adapters([(a.folder, a.scale) for a in arms[arm]], base_hash(config.model))
        inputs |= {f"{arm}_{i}": adapter.sha256 for i, adapter in enumerate(loaded)}
    dataset = None
    if config.split is not None:
        dataset = locate_dataset(storage, str(config.dataset))
        inputs["dataset"] = dataset.manifest_sha256
        for frames, height, width in sorted({(w.num_frames, w.height, w.width) for w in dataset.windows(config.split)}):
            spec.check_size(frames, height, width, f"dataset {config.dataset!r}")
    else:
        for i, shot in enumerate(config.shots):
            check_picture(shot.image, f"shots.{i}.image")
            spec.check_size(shot.num_frames, shot.height, shot.width, f"shots.{i}")
        inputs["images"] = sha256_json([sha256_file(Path(s.image).expanduser()) for s in config.shots])
    return arms, dataset, inputs


@records_its_end
def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make the videos that are not there yet, so that a stopped run continues."""
    arms, dataset, inputs = check_generation(config)
    if dataset is not None:
        held_out_windows(config, dataset)
    run = Run.open(config, inputs)
    if (done := run.result()) is not None and _made(run) >= done["figures"]["videos"]:
        log.info("run %s is complete; nothing to do", config.name)
        return done
    windows = [] if dataset is None else settle_windows(run.folder, config, dataset)
    if dataset is not None:
        copy_real(run.folder, dataset, windows)
    tasks = _shot_tasks(config) if dataset is None else _window_tasks(list(arms), windows)
    started = time.monotonic()
    left = [t for t in tasks if not run.folder.exists(t["file"])]
    log.info("%d videos to make, %d of them there already", len(tasks), len(tasks) - len(left))
    figures: dict[str, Any] = {"videos": len(tasks)}
    if left:
        with held(run) as lease, ray_session(config):
            figures |= seconds_of(_map(config, arms, dataset, run, left, lease))
    figures["seconds"] = round(time.monotonic() - started, 1)
    outputs = {"videos": run.folder.child("videos").uri}
    if dataset is not None:
        outputs["groups"] = run.folder.child(GROUPS).uri
        if beyond := len(dataset.windows(config.split)) - len(windows):
            return run.finish(outputs, figures, {"max_windows": f"{beyond:,} windows of split {config.split}"})
    return run.finish(outputs, figures)


def seconds_of(made: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of loading a model replica (`load_seconds`) and of making a video (`video_seconds`).

    Args:
        made: what the workers say of each video. Without any there are no medians.
    """
    loads = {row["worker"]: row["load_seconds"] for row in made}
    videos = [row["video_seconds"] for row in made]
    return {
        name: round(float(median(values)), 2)
        for name, values in (("load_seconds", loads.values()), ("video_seconds", videos))
        if values
    }


def _made(run: Run) -> int:
    """How many videos are there, the real ones apart."""
    return sum(not name.startswith("videos/real/") for name in run.folder.list("videos", recursive=True))


def _shot_tasks(config: GenerateConfig) -> list[dict[str, Any]]:
    return [
        {"file": f"videos/{i:04d}.mp4", "arm": "adapter", "shot": shot.model_dump(mode="json"), "order": i}
        for i, shot in enumerate(config.shots)
    ]


def _window_tasks(arms: list[str], windows: list[WindowRow]) -> list[dict[str, Any]]:
    return [
        {"file": f"videos/{arm}/{w.window_id}.mkv", "arm": arm, "window_id": w.window_id, "order": i}
        for arm in arms
        for i, w in enumerate(windows)
    ]


def _map(
    config: GenerateConfig,
    arms: Arms,
    dataset: ClipsDataset | None,
    run: Run,
    tasks: list[dict[str, Any]],
    lease: Lease,
) -> list[dict[str, Any]]:
    """Make the videos of the tasks. Returns what the workers say of each."""
    import ray.data

    made = ray.data.from_items(tasks, override_num_blocks=min(len(tasks), 4 * config.workers)).map_batches(
        GenerateWorker,
        fn_constructor_kwargs={
            "config": config.model_dump(mode="json"),
            "arms": {arm: [(str(a.folder), a.scale) for a in adapters] for arm, adapters in arms.items()},
            "dataset": None if dataset is None else dataset.storage.reference(),
            "run": run.folder.reference(),
        },
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        batch_size=1,
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else None,
        **config.resources.options(1 if config.use_gpu else 0),
    )
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for row in made.iter_rows():
        lease.check()
        rows.append(row)
        count = len(rows)
        if count % 8 == 0 or count == len(tasks):
            rate = (time.monotonic() - started) / count
            log.info("%d/%d videos  %.2f s each  ETA %.0f s", count, len(tasks), rate, rate * (len(tasks) - count))
    return rows
