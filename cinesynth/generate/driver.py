"""Generation on Ray: shots from images and prompts, or every held-out window without and with the adapters."""

from __future__ import annotations

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

from cinesynth.config import GenerateConfig
from cinesynth.data.dataset import ClipsDataset, WindowRow, pixels_file
from cinesynth.errors import DatasetError
from cinesynth.generate.worker import GenerateWorker
from cinesynth.locate import locate_adapter, locate_dataset
from cinesynth.pictures import check_picture
from cinesynth.runs import Run, records_its_end
from cinesynth.session import ray_session
from cinesynth.storage import Storage, sha256_file, sha256_json
from cinesynth.wan.card import check_adapters
from cinesynth.wan.folder import base_hash, model_hash, model_spec

log = logging.getLogger("cinesynth.generate")


Checked = tuple[list[tuple[Path, float]], ClipsDataset | None, dict[str, str]]


def check_generation(config: GenerateConfig) -> Checked:
    """Check model, adapters, sizes and dataset without Ray.

    Returns the adapters (folder, scale), the dataset where windows are made again, and the hashes of what is read.
    Raises CinesynthError.
    """
    storage = Storage.open(config.storage)
    adapters = [(locate_adapter(storage, a.ref), a.scale) for a in config.adapters]
    inputs = {"model": model_hash(config.model)}
    spec = model_spec(config.model)
    loaded = check_adapters(adapters, base_hash(config.model))
    inputs |= {f"adapter_{i}": adapter.sha256 for i, adapter in enumerate(loaded)}
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
    return adapters, dataset, inputs


@records_its_end
def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make videos; those that are already there are kept, so a stopped run continues."""
    adapters, dataset, inputs = check_generation(config)
    windows = [] if dataset is None else held_out_windows(config, dataset)
    run = Run.open(config, inputs)
    if (done := run.result()) is not None and _made(run) >= done["figures"]["videos"]:
        log.info("run %s is complete; nothing to do", config.name)
        return done
    tasks = _shot_tasks(config) if dataset is None else _window_tasks(config, dataset, windows, run)
    started = time.monotonic()
    left = [t for t in tasks if not run.folder.exists(t["file"])]
    log.info("%d videos to make, %d of them there already", len(tasks), len(tasks) - len(left))
    if left:
        with ray_session(config):
            _map(config, adapters, dataset, run, left)
    figures = {"videos": len(tasks), "seconds": round(time.monotonic() - started, 1)}
    outputs = {"videos": run.folder.child("videos").uri}
    if dataset is not None:
        outputs["groups"] = run.folder.child("groups.csv").uri
        if beyond := len(dataset.windows(config.split)) - len(windows):
            return run.finish(outputs, figures, {"max_windows": f"{beyond:,} windows of split {config.split}"})
    return run.finish(outputs, figures)


def _made(run: Run) -> int:
    """How many videos are there, the real ones apart."""
    return sum(not name.startswith("videos/real/") for name in run.folder.list("videos", recursive=True))


def _shot_tasks(config: GenerateConfig) -> list[dict[str, Any]]:
    return [
        {"file": f"videos/{i:04d}.mp4", "arm": "adapter", "shot": shot.model_dump(mode="json"), "order": i}
        for i, shot in enumerate(config.shots)
    ]


def held_out_windows(config: GenerateConfig, dataset: ClipsDataset) -> list[WindowRow]:
    """The windows that are made again. Raises DatasetError when the split has none."""
    windows = dataset.windows(config.split)[: config.max_windows]
    if not windows:
        raise DatasetError(
            f"dataset {config.dataset!r} has no window in its {config.split} split: a domain with "
            "fewer than 3 groups is trained on whole; add footage, or raise the split's share"
        )
    return windows


def _window_tasks(
    config: GenerateConfig, dataset: ClipsDataset, windows: list[WindowRow], run: Run
) -> list[dict[str, Any]]:
    """One task a window and arm. Copies the real windows and writes the groups beside them."""
    for window in windows:
        real = f"videos/real/{window.window_id}.mkv"
        if not run.folder.exists(real):
            run.folder.write_bytes(real, dataset.storage.read_bytes(pixels_file(window.window_id)))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["video", "group", "caption"])
    rows.writerows([w.window_id, w.group, w.caption] for w in windows)
    run.folder.write_text("groups.csv", table.getvalue())
    arms = ["base", "adapter"] if config.adapters else ["base"]
    return [
        {"file": f"videos/{arm}/{w.window_id}.mkv", "arm": arm, "window_id": w.window_id, "order": i}
        for arm in arms
        for i, w in enumerate(windows)
    ]


def _map(
    config: GenerateConfig,
    adapters: list[tuple[Path, float]],
    dataset: ClipsDataset | None,
    run: Run,
    tasks: list[dict[str, Any]],
) -> None:
    import ray.data

    made = ray.data.from_items(tasks, override_num_blocks=min(len(tasks), 4 * config.workers)).map_batches(
        GenerateWorker,
        fn_constructor_kwargs={
            "config": config.model_dump(mode="json"),
            "adapters": [(str(path), scale) for path, scale in adapters],
            "dataset": None if dataset is None else dataset.storage.reference(),
            "run": run.folder.reference(),
        },
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        batch_size=1,
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else None,
    )
    started = time.monotonic()
    for count, _ in enumerate(made.iter_rows(), start=1):
        if count % 8 == 0 or count == len(tasks):
            rate = (time.monotonic() - started) / count
            log.info("%d/%d videos  %.2f s each  ETA %.0f s", count, len(tasks), rate, rate * (len(tasks) - count))
