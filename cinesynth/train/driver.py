"""A training stage on Ray Train: it is planned without Ray, run on a worker group, and recorded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from cinesynth.config import TrainConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import ConfigError, DatasetError
from cinesynth.locate import locate_adapter, locate_dataset
from cinesynth.report.training import write_train_report
from cinesynth.runs import Run, records_its_end
from cinesynth.session import interruptible, ray_session
from cinesynth.storage import Storage
from cinesynth.train.worker import train_worker
from cinesynth.wan.card import check_adapters
from cinesynth.wan.folder import base_hash, encoder_hash, model_spec

log = logging.getLogger("cinesynth.train")


@dataclass(frozen=True)
class Plan:
    """A training stage whose inputs were checked, before a worker starts."""

    config: TrainConfig
    run: Run
    dataset: ClipsDataset


def check_training(config: TrainConfig) -> tuple[ClipsDataset, dict[str, str]]:
    """Check dataset, base and parents; returns the dataset and the hashes of what is read. Raises CinesynthError."""
    spec = model_spec(config.model)
    if len(spec.family.experts) > 1:
        raise ConfigError(
            f"model: {config.model!r} has {len(spec.family.experts)} experts, each trained on its own noise levels; "
            "training takes models with one transformer"
        )
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
    parents = check_adapters([(locate_adapter(storage, p.ref), p.scale) for p in config.parents], inputs["base"])
    inputs |= {f"parent_{i}": parent.sha256 for i, parent in enumerate(parents)}
    for frames, height, width in sorted({(w.num_frames, w.height, w.width) for w in dataset.windows()}):
        spec.check_size(frames, height, width, f"dataset {config.dataset!r}")
    return dataset, inputs


def plan_training(config: TrainConfig) -> Plan:
    """Check dataset, base and parents, and open the run. Raises CinesynthError; needs no Ray."""
    dataset, inputs = check_training(config)
    return Plan(config, Run.open(config, inputs), dataset)


@records_its_end
def train(config: TrainConfig) -> dict[str, Any]:
    """Train on a clips dataset, from where a former try of this run stopped; returns the run's result."""
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
        train_worker,
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
    interruptible(trainer.fit)
    figures = folder.read_json("trained.json")
    curve = [e["val_loss"] for e in plan.run.events() if "val_loss" in e]
    ends = {"val_loss_first": curve[0], "val_loss_last": curve[-1]} if curve else {}
    return {**ends, **figures}
