"""Generation on Ray: shots from images and prompts, or every held-out window without and with the adapters."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cinesynth.config import GenerateConfig, SamplerSettings, ShotRequest
from cinesynth.data.shards import ClipsDataset
from cinesynth.data.video import write_video
from cinesynth.errors import DatasetError, MediaError
from cinesynth.generate.sampler import Conditions, GeneratedVideo, Generator
from cinesynth.runs import Run
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_file, sha256_json
from cinesynth.train.driver import locate_adapter, locate_dataset
from cinesynth.wan.adapter import read_card
from cinesynth.wan.folder import model_hash

log = logging.getLogger("cinesynth.generate")


def window_seed(seed: int, window_id: str) -> int:
    """The noise seed of a held-out window: the same for every arm, another for every window."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{window_id}".encode()).digest()[:4], "big") >> 1


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make videos; those that are already there are kept, so a stopped run continues."""
    storage = Storage.open(config.storage)
    adapters = [(locate_adapter(storage, a.ref), a.scale) for a in config.adapters]
    inputs = {"model": model_hash(config.model)}
    inputs |= {f"adapter_{i}": read_card(folder).sha256 for i, (folder, _) in enumerate(adapters)}
    dataset = None
    if config.split is not None:
        dataset = locate_dataset(storage, str(config.dataset))
        inputs["dataset"] = dataset.manifest_sha256
    else:
        inputs["images"] = sha256_json([sha256_file(Path(s.image).expanduser()) for s in config.shots])
    run = Run.open(config, inputs)
    if (done := run.result()) is not None:
        log.info("run %s is complete; nothing to do", config.name)
        return done
    tasks = _shot_tasks(config) if dataset is None else _window_tasks(config, dataset, run)
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
    return run.finish(outputs, figures)


def _shot_tasks(config: GenerateConfig) -> list[dict[str, Any]]:
    return [
        {"file": f"videos/{i:04d}.mp4", "arm": "adapter", "shot": shot.model_dump(mode="json"), "order": i}
        for i, shot in enumerate(config.shots)
    ]


def _window_tasks(config: GenerateConfig, dataset: ClipsDataset, run: Run) -> list[dict[str, Any]]:
    """One task a window and arm. Copies the real windows and writes the groups beside them."""
    windows = dataset.windows(config.split)[: config.max_windows]
    if not windows:
        raise DatasetError(
            f"dataset {config.dataset!r} has no window in its {config.split} split: a domain with "
            "fewer than 3 groups is trained on whole; add footage, or raise the split's share"
        )
    for window in windows:
        name = f"{window.window_id}.mkv"
        if not run.folder.exists(f"videos/real/{name}"):
            run.folder.write_bytes(f"videos/real/{name}", dataset.storage.read_bytes(f"pixels/{name}"))
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


class GenerateWorker:
    """One model replica of the actor pool."""

    def __init__(
        self, config: dict[str, Any], adapters: list[tuple[str, float]], dataset: Any, run: tuple[Any, str, str]
    ) -> None:
        self.config = parse_config(GenerateConfig, config)
        self.generator = Generator(self.config.model, "cuda" if torch.cuda.is_available() else "cpu")
        self.adapters = [(Path(p), scale) for p, scale in adapters]
        self.arm: str | None = None
        self.run = Storage(*run)
        self.windows: dict[str, Any] = {}
        if dataset is not None:
            clips = ClipsDataset.open(Storage(*dataset))
            cache = Path(tempfile.gettempdir()) / "cinesynth-shards" / clips.manifest_sha256
            staged = clips.stage(cache, self.config.split)
            self.windows = {w.window_id: i for i, w in enumerate(clips.windows(self.config.split))}
            self.staged = staged
            self.empty_prompt = torch.as_tensor(clips.empty_prompt_embeds())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        task = {key: values[0] for key, values in batch.items()}
        if task["arm"] != self.arm:
            self.generator.load_adapters(self.adapters if task["arm"] == "adapter" else [])
            self.arm = task["arm"]
        video = self._shot(task["shot"]) if "shot" in task else self._window(task["window_id"])
        codec = "h264" if task["file"].endswith(".mp4") else "ffv1"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(task["file"]).name
            write_video(path, video.frames, self.generator.fps, "h264" if codec == "h264" else "ffv1", video.provenance)
            self.run.upload(path, task["file"])
        return {"file": [task["file"]]}

    def _shot(self, shot: dict[str, Any]) -> GeneratedVideo:
        request = ShotRequest.model_validate(shot)
        try:
            image = Image.open(Path(request.image).expanduser())
            image.load()
        except OSError as e:
            raise MediaError(f"{request.image} cannot be read as an image: {e}") from e
        return self.generator.generate(
            image, request.prompt, request.num_frames, request.height, request.width, self.config.sampler
        )

    def _window(self, window_id: str) -> GeneratedVideo:
        row = self.staged[self.windows[window_id]]
        sampler: SamplerSettings = self.config.sampler
        negative = None
        if sampler.guidance_scale > 1:
            text = sampler.negative_prompt
            negative = self.generator.encoder.prompt_embeds(text) if text else self.empty_prompt
        conditions = Conditions(
            condition_latents=torch.as_tensor(row["condition_latents"]).float(),
            image_embeds=torch.as_tensor(row["image_embeds"]).float(),
            prompt_embeds=torch.as_tensor(row["prompt_embeds"]).float(),
            negative_embeds=negative,
        )
        seeded = sampler.model_copy(update={"seed": window_seed(sampler.seed, window_id)})
        return self.generator.generate_from(conditions, seeded)
