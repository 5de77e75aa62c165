"""A training stage on Ray Train: plan without Ray, run the loop on the worker group, record the result."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import TrainConfig
from cinesynth.data.shards import ClipsDataset
from cinesynth.errors import ConfigError, DatasetError
from cinesynth.registry import Registry
from cinesynth.report.training import write_train_report
from cinesynth.runs import Run, read_result
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.checkpoint import write_state
from cinesynth.train.loop import TrainLoop
from cinesynth.train.strategy import World, choose_strategy, make_strategy
from cinesynth.wan.adapter import DIFFUSERS_FILE, AdapterCard, Parent, merge_adapters, read_card, save_adapter
from cinesynth.wan.folder import base_hash, encoder_hash
from cinesynth.wan.load import load_transformer, save_model

log = logging.getLogger("cinesynth.train")

EMPTY_HELD_OUT: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Plan:
    """A validated training stage: everything that can be known before a worker starts."""

    config: TrainConfig
    run: Run
    dataset: ClipsDataset


def locate_dataset(storage: Storage, dataset: str) -> ClipsDataset:
    """Open a dataset by its name below `<storage>/datasets`, or by its location."""
    named = storage.child("datasets", dataset)
    return ClipsDataset.open(named if "/" not in dataset and named.exists() else Storage.open(dataset))


def locate_adapter(storage: Storage, ref: str, cache: Path | None = None) -> Path:
    """The local folder of an adapter given as a folder, a train run's name or `name@version` in the registry."""
    if Path(ref).expanduser().is_dir():
        return Path(ref).expanduser()
    cache = cache or Path(tempfile.gettempdir()) / "cinesynth-adapters"
    if "@" not in ref and storage.exists(f"runs/{ref}/result.json"):
        if "adapter" not in read_result(storage, ref)["outputs"]:
            raise ConfigError(f"adapter {ref!r}: that run made no adapter")
        folder = storage.child("runs", ref, "adapter")
        if folder.is_local:
            return Path(folder.path)
        return folder.download_folder("", cache / folder.sha256(DIFFUSERS_FILE))
    return Registry(storage).fetch(ref, cache)


def plan_training(config: TrainConfig) -> Plan:
    """Check dataset, base and parents, and open the run. Raises CinesynthError; needs no Ray."""
    storage = Storage.open(config.storage)
    dataset = locate_dataset(storage, config.dataset)
    if dataset.manifest["encoder_hash"] != encoder_hash(config.model):
        raise DatasetError(
            f"dataset {config.dataset!r} was encoded with another model's encoders "
            f"({dataset.manifest['encoder_hash'][:12]}) than those of {config.model!r} "
            f"({encoder_hash(config.model)[:12]}); prepare it with model={config.model}"
        )
    if not dataset.windows("train"):
        raise DatasetError(f"dataset {config.dataset!r} has no window in its train split; add footage")
    inputs = {"dataset": dataset.manifest_sha256, "base": base_hash(config.model)}
    inputs |= {f"parent_{i}": read_card(locate_adapter(storage, p.ref)).sha256 for i, p in enumerate(config.parents)}
    return Plan(config, Run.open(config, inputs), dataset)


def train(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune a LoRA adapter on a clips dataset; continues where a former try of this run stopped."""
    plan = plan_training(config)
    if (done := plan.run.result()) is not None:
        log.info("run %s is complete; nothing to do", config.name)
        return done
    with ray_session(config):
        figures = _fit(plan)
    made = "adapter" if config.mode == "lora" else "model"
    outputs = {made: plan.run.folder.child(made).uri, "report": write_train_report(config, plan.run)}
    return plan.run.finish(outputs, figures)


def _fit(plan: Plan) -> dict[str, Any]:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config, folder = plan.config, plan.run.folder
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "inputs": plan.run.inputs,
            "dataset": plan.dataset.storage.reference(),
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the checker sees the class of Train v1
            name="checkpoints",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),  # state transitions and reports are in Ray's log files
        ),
    )
    trainer.fit()
    figures = folder.read_json("trained.json")
    curve = [e["val_loss"] for e in plan.run.events() if "val_loss" in e]
    ends = {"val_loss_first": curve[0], "val_loss_last": curve[-1]} if curve else {}
    return {**ends, **figures}


def _worker(task: dict[str, Any]) -> None:
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
    cache = Path(tempfile.gettempdir()) / "cinesynth-shards" / dataset.manifest_sha256
    loop = TrainLoop(
        config,
        transformer,
        dataset.stage(cache, "train"),
        dataset.stage(cache, "val") if dataset.windows("val") else EMPTY_HELD_OUT,
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
    """The adapter's folder; returns the hash on its card."""
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
    """The base model's folder with the trained transformer in it, which is what `model:` takes; returns its hash."""
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
