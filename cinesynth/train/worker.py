"""One rank of a training stage's worker group: it loads, restores, trains, and writes the result."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import TrainConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.locate import locate_adapter
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, scratch_folder
from cinesynth.train.checkpoint import write_state
from cinesynth.train.loop import TrainLoop
from cinesynth.train.strategy import World, choose_strategy, make_strategy
from cinesynth.wan.adapter import merge_adapters, save_adapter
from cinesynth.wan.card import AdapterCard, Parent
from cinesynth.wan.folder import base_hash, model_spec
from cinesynth.wan.load import load_transformer, save_model

log = logging.getLogger("cinesynth.train")

_EMPTY_HELD_OUT: list[dict[str, Any]] = []


def train_worker(task: dict[str, Any]) -> None:
    """One rank of the worker group."""
    import ray.train
    from ray.train.torch import get_device

    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("cinesynth").setLevel(logging.INFO)
    context = ray.train.get_context()
    device = str(get_device()) if torch.cuda.is_available() else "cpu"
    world = World(context.get_world_rank(), context.get_world_size(), device)
    config = parse_config(TrainConfig, task["config"])
    dataset = ClipsDataset.open(Storage(*task["dataset"]))
    storage = Storage.open(config.storage)
    run = Run(storage.child("runs", config.name), config.name, config.kind, task["inputs"])

    dtype = torch.bfloat16 if config.dtype == "bf16" or (config.dtype == "auto" and device != "cpu") else torch.float32
    transformer = load_transformer(config.model, torch.float32 if config.mode == "full" else dtype)
    folders = [(locate_adapter(storage, p.ref), p.scale) for p in config.parents]
    parents = merge_adapters(transformer, folders, task["inputs"]["base"])
    weight_bytes = sum(p.numel() * p.element_size() for p in transformer.parameters())
    name, reason = choose_strategy(config.strategy, weight_bytes, _device_bytes(device), world.size)
    if world.rank == 0:
        log.info("strategy %s: %s; %d worker(s) on %s, %s", name, reason, world.size, device, dtype)
    cache = scratch_folder("shards", dataset.manifest_sha256)
    loop = TrainLoop(
        config,
        model_spec(config.model).family,
        transformer,
        dataset.stage(cache, "train"),
        dataset.stage(cache, "val") if dataset.windows("val") else _EMPTY_HELD_OUT,
        torch.as_tensor(dataset.empty_prompt_embeds()),
        make_strategy(name, world),
        RayCheckpoints(world),
        lambda first, events: run.write_events(f"train-{first:08d}", events),
        world,
        dtype,
    )
    figures = loop.run()
    if world.rank == 0:
        if config.mode == "lora":
            made = {"adapter_sha256": _write_adapter(loop, config, task["inputs"], parents, figures, run.folder)}
        else:
            made = {"transformer_sha256": _write_model(loop, config.model, run.folder)}
        run.folder.write_json("trained.json", {"loss_last": figures["loss"], "steps": loop.step, **made})


def _write_adapter(
    loop: TrainLoop,
    config: TrainConfig,
    inputs: dict[str, str],
    parents: list[Parent],
    figures: dict[str, float],
    run: Storage,
) -> str:
    """Write the adapter's folder; returns the hash on its card."""
    card = AdapterCard(
        base_model=config.model,
        base_sha256=inputs["base"],
        parents=parents,
        stage=config.stage,
        dataset=config.dataset,
        dataset_sha256=inputs["dataset"],
        config=config.identity(),
        metrics=figures,
        step=loop.step,
    )
    with tempfile.TemporaryDirectory() as local:
        card = save_adapter(local, loop.adapter(), loop.transformer.peft_config["default"], card)
        run.upload_folder(local, "adapter")
    return card.sha256


def _write_model(loop: TrainLoop, base: str, run: Storage) -> str:
    """Write the base model's folder with the trained transformer in it, as `model:` takes it; returns `base_hash`."""
    with tempfile.TemporaryDirectory() as local:
        save_model(loop.transformer, base, local)
        run.upload_folder(local, "model")
        return base_hash(local)


def _device_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    with open("/proc/meminfo") as f:
        return int(f.readline().split()[1]) * 1024


class RayCheckpoints:
    """Checkpoints through `ray.train.report`: Ray commits them and hands the newest one to a restarted group."""

    def __init__(self, world: World) -> None:
        self.world = world

    def latest(self) -> Path | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.to_directory())

    def save(self, state: dict[str, torch.Tensor], step: int, figures: dict[str, float]) -> None:
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.world.rank == 0:  # every worker holds the same state
                write_state(folder, state, step, figures)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": step, **figures}, checkpoint=checkpoint)
