"""One rank of a training stage's worker group: it loads, restores and trains."""

from __future__ import annotations

import json
import logging
import socket
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import TrainConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import TrainingError
from cinesynth.locate import locate_adapter
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, scratch_folder
from cinesynth.train.batch import ListedClips
from cinesynth.train.checkpoint import StoredCheckpoints, manifest_of
from cinesynth.train.choice import make_strategy
from cinesynth.train.ending import EndRequest
from cinesynth.train.loop import TrainLoop
from cinesynth.train.memory import adapted, compute_dtype, memory_errors_told, training_memory
from cinesynth.train.state import Saved, trained
from cinesynth.train.strategy import World
from cinesynth.train.supported import check_supported
from cinesynth.train.telemetry import StepGauges, write_scalars
from cinesynth.train.validations import Validations
from cinesynth.train.videos import VideoValidation, VideoWatch
from cinesynth.wan.adapter import load_adapters, save_adapter
from cinesynth.wan.card import AdapterCard, Parent
from cinesynth.wan.folder import base_hash, model_spec, split_revision
from cinesynth.wan.load import prepare_attention, save_model
from cinesynth.wan.lora import adapter_of, told_modules
from cinesynth.wan.merging import Merging
from cinesynth.wan.placement import choose_strategy, device_bytes
from cinesynth.wan.stream import StoredWeights

log = logging.getLogger("cinesynth.train")


def train_worker(task: dict[str, Any]) -> None:
    """One rank of the worker group. Raises TrainingError where it would fail again."""
    with memory_errors_told("training"):
        _train(task)


def _train(task: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("cinesynth").setLevel(logging.INFO)
    logging.getLogger("cinesynth.metrics").setLevel(logging.WARNING)  # of a few videos there is no progress to tell
    context = ray.train.get_context()
    device = str(get_device()) if torch.cuda.is_available() else "cpu"
    world = World(context.get_world_rank(), context.get_world_size(), device, context.get_local_world_size())
    config = parse_config(TrainConfig, task["config"])
    dataset = ClipsDataset.open(Storage(*task["dataset"]))
    _check("dataset", dataset.manifest_sha256, task["inputs"])
    storage = Storage.open(config.storage)
    run = Run(storage.child("runs", config.name), config.name, config.kind, task["inputs"])

    dtype = compute_dtype(config, device != "cpu")
    _check("base", base_hash(config.model), task["inputs"])
    parents = [(locate_adapter(storage, ref), scale) for ref, scale in task["parents"]]
    full = config.mode == "full"
    weights = StoredWeights(config.model, torch.float32 if full else dtype)
    transformer = weights.empty_transformer()
    prepare_attention(transformer, config.model, device)
    family = model_spec(config.model).family
    memory = training_memory(config, family, transformer, weights.bytes, dataset, dtype)
    name, shards, reason = choose_strategy(
        config.strategy,
        memory,
        world.least(device_bytes(device)),
        world.size,
        world.per_node,
        config.shard_over,
        full,
    )
    check_supported(name, config)  # what `auto` chose
    if world.rank == 0 and not full:
        log.info("adapter on %s", told_modules(list(adapted(config, family, transformer))))
    if world.rank == 0:
        log.info("strategy %s: %s; %d worker(s) on %s, %s", name, reason, world.size, device, dtype)
    merged = full or (config.merge and bool(parents))
    if merged:
        weights.fill(transformer, "cpu")
        whole = StoredWeights(config.model, torch.float32)
        applied = Merging(whole).load(transformer, parents, task["inputs"]["base"])
    else:
        applied = load_adapters(transformer, parents, task["inputs"]["base"])
    for i, parent in enumerate(applied):
        _check(f"parent_{i}", parent.sha256, task["inputs"])
    cache = scratch_folder("shards", dataset.manifest_sha256)
    watch = None
    if config.validation_videos is not None:
        inline = VideoValidation(config, dataset, device) if task["placement"] == "inline" else None
        watch = VideoWatch(Validations(run.folder, config), world, inline, dtype)

    def write_adapter(folder: Path, saved: Saved) -> None:
        save_adapter(
            folder,
            adapter_of(trained(saved.tensors)),
            transformer.peft_config["default"],
            _card(config, task["inputs"], applied, saved),
        )

    def write_events(first: int, events: list[dict[str, Any]]) -> None:
        run.write_events(f"train-{first:08d}", events)
        write_scalars(run.folder, f"{first:08d}", events)

    loop = TrainLoop(
        config,
        family,
        transformer,
        dataset.stage(cache, "train"),
        dataset.stage(cache, "val") if dataset.windows("val") else ListedClips(),
        torch.as_tensor(dataset.empty_prompt_embeds()),
        make_strategy(name, world, None if merged else weights, shards, config.zero_stage),
        WorkerCheckpoints(
            run.folder.child("checkpoints"),
            world,
            config.keep_checkpoints,
            watch.needed if watch is not None else tuple,
            None if full else write_adapter,
        ),
        write_events,
        world,
        dtype,
        watch,
        EndRequest(run.folder, looks=world.rank == 0),
        StepGauges(config.name, config.optimizer.steps).show if world.rank == 0 else lambda event: None,
    )
    figures = loop.run()
    if full and world.rank == 0 and loop.step == config.optimizer.steps:  # else it was called off, and goes on later
        made = {"transformer_sha256": _write_model(loop, config.model, run.folder)}
        run.folder.write_json("trained.json", {"loss_last": figures["loss"], "steps": loop.step, **made})


def _check(name: str, found: str, inputs: dict[str, str]) -> None:
    """Raise TrainingError where this node reads another input than the driver: an alias that moved, an older copy."""
    if found != inputs[name]:
        raise TrainingError(
            f"{name} on {socket.gethostname()} has the content {found[:12]}, but this run was started with "
            f"{inputs[name][:12]}; give every node the same files"
        )


def _card(config: TrainConfig, inputs: dict[str, str], parents: list[Parent], saved: Saved) -> AdapterCard:
    """The card of the adapter in a state."""
    model, revision = split_revision(config.model)
    return AdapterCard(
        base_model=model,
        base_revision=revision,
        base_sha256=inputs["base"],
        parents=parents,
        stage=config.stage,
        dataset=config.dataset,
        dataset_sha256=inputs["dataset"],
        config=config.identity(),
        metrics=saved.figures,
        step=saved.step,
    )


def _write_model(loop: TrainLoop, base: str, run: Storage) -> str:
    """Write the base model's folder with the trained transformer in it, as `model:` takes it; returns `base_hash`."""
    with tempfile.TemporaryDirectory() as local:
        save_model(loop.transformer, base, local)
        run.upload_folder(local, "model")
        return base_hash(local)


POINTER = "manifest.json"
"""The only file of a checkpoint of Ray Train: where the manifest of ours is, or will be once it is written."""


class WorkerCheckpoints(StoredCheckpoints):
    """Checkpoints in the run's folder, written by rank 0. Ray Train is told of each, so that its state shows the run go
    on: its checkpoint points to the manifest of ours, and nothing is read from it."""

    def __init__(
        self,
        folder: Storage,
        world: World,
        keep: int,
        also_keep: Callable[[], Collection[int]],
        write_adapter: Callable[[Path, Saved], None] | None,
    ) -> None:
        super().__init__(folder, world.rank == 0, keep, also_keep, write_adapter)

    def save(self, saved: Saved) -> None:
        import ray.train

        super().save(saved)
        with tempfile.TemporaryDirectory() as local:
            pointer = None
            if self.writes:
                where = f"{self.folder.uri}/{manifest_of(saved.step)}"
                (Path(local) / POINTER).write_text(json.dumps({"manifest": where}))
                pointer = ray.train.Checkpoint.from_directory(local)
            ray.train.report({"step": saved.step, **saved.figures}, checkpoint=pointer)
