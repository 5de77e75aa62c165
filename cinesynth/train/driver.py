"""A training stage on Ray Train: it is planned without Ray, run on a worker group, and recorded."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass
from typing import Any

import torch

from cinesynth.config import TrainConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import AttemptFailed, ConfigError, DatasetError, user_error
from cinesynth.lease import Lease, held
from cinesynth.locate import adapter_chain, locate_adapter, locate_dataset
from cinesynth.report.training import write_train_report
from cinesynth.runs import Run, records_its_end
from cinesynth.session import check_room, interruptible, ray_session
from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.events import validations
from cinesynth.train.memory import Memory, adapted, compute_dtype, training_memory
from cinesynth.train.supported import check_supported
from cinesynth.train.worker import train_worker
from cinesynth.wan.card import check_adapters
from cinesynth.wan.folder import base_hash, encoder_hash, model_spec, pinned_model
from cinesynth.wan.stream import StoredWeights

log = logging.getLogger("cinesynth.train")

RAY_STATE = "ray"
"""Folder of a run with what Ray Train notes of a worker group that is alive; nothing is read from it again."""


@dataclass(frozen=True)
class Plan:
    """A training stage whose inputs were checked, before a worker starts."""

    config: TrainConfig
    run: Run
    checked: Checked


@dataclass(frozen=True)
class Checked:
    """What a training reads and does, as it is known before a worker starts."""

    dataset: ClipsDataset
    inputs: dict[str, str]
    """Hashes of what is read, by name."""
    parents: list[tuple[str, float]]
    """(reference that cannot come to mean another adapter, scale), in the order they are applied."""
    modules: list[str]
    """Layers that get an adapter; empty where all weights are trained."""
    memory: Memory
    """Of a step, by arithmetic."""


def check_training(config: TrainConfig) -> Checked:
    """Check strategy, dataset, base, parents and the adapter's shape. Raises CinesynthError."""
    check_supported(config.strategy, config)
    spec = model_spec(config.model)
    if len(spec.family.experts) > 1:
        raise ConfigError(
            f"model: {config.model!r} has {len(spec.family.experts)} experts, each trained on its own noise levels; "
            "training takes models with one transformer"
        )
    dtype = compute_dtype(config, config.use_gpu)
    if config.merge and config.mode == "lora" and dtype != torch.float32:
        raise ConfigError(
            f"merge: true needs an fp32 base, and this one is loaded in {str(dtype).removeprefix('torch.')}, which "
            "rounds the parents to another function than the one that is served; set dtype=fp32, or merge=false"
        )
    weights = StoredWeights(config.model, torch.float32 if config.mode == "full" else dtype)
    transformer = weights.empty_transformer()
    layers = adapted(config, spec.family, transformer)
    _check_rank(config.lora.rank, layers)
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
    parents = adapter_chain(storage, [(p.ref, p.scale) for p in config.parents])
    applied = check_adapters([(locate_adapter(storage, ref), scale) for ref, scale in parents], inputs["base"])
    inputs |= {f"parent_{i}": parent.sha256 for i, parent in enumerate(applied)}
    for frames, height, width in sorted({(w.num_frames, w.height, w.width) for w in dataset.windows()}):
        spec.check_size(frames, height, width, f"dataset {config.dataset!r}")
    memory = training_memory(config, spec.family, transformer, weights.bytes, dataset, dtype)
    return Checked(dataset, inputs, parents, list(layers), memory)


def _check_rank(rank: int, layers: dict[str, torch.nn.Linear]) -> None:
    width = min((min(layer.in_features, layer.out_features) for layer in layers.values()), default=rank)
    if rank > width:
        raise ConfigError(
            f"lora.rank: {rank} is above the width {width} of the narrowest layer that gets an adapter; "
            "more rank than width changes nothing"
        )


def plan_training(config: TrainConfig) -> Plan:
    """Check dataset, base and parents, and open the run. Raises CinesynthError; needs no Ray."""
    checked = check_training(config)
    return Plan(config, Run.open(config, checked.inputs), checked)


@records_its_end
def train(config: TrainConfig) -> dict[str, Any]:
    """Train on a clips dataset, from where a former try of this run stopped; returns the run's result."""
    plan = plan_training(config)
    if (done := plan.run.result()) is not None:
        log.info("run %s is complete; nothing to do", config.name)
        return done
    with held(plan.run) as lease, ray_session(config):
        check_room(config.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0)
        figures = _train_to_the_end(plan, lease)
    made = "adapter" if config.mode == "lora" else "model"
    outputs = {made: plan.run.folder.child(made).uri, "report": write_train_report(config, plan.run)}
    return plan.run.finish(outputs, figures)


def _train_to_the_end(plan: Plan, lease: Lease) -> dict[str, Any]:
    """Start worker groups until one trains to the end.

    A group that failed is started again from the last checkpoint, unless what failed would fail again. Failures count
    until there is a newer checkpoint.
    """
    checkpoints = StoredCheckpoints(plan.run.folder.child("checkpoints"))
    failures, reached = 0, _newest(checkpoints)
    while True:
        try:
            _fit(plan, lease)
            break
        except Exception as e:
            found = user_error(e)
            if found is not None and not isinstance(found, AttemptFailed):
                raise
            step = _newest(checkpoints)
            failures = 1 if step > reached else failures + 1
            reached = max(step, reached)
            if failures > plan.config.max_failures:
                raise
            log.warning(
                "the workers failed after step %d (%s); they start again (failure %d of at most %d without progress)",
                step,
                _what_failed(e),
                failures,
                plan.config.max_failures,
            )
    figures = plan.run.folder.read_json("trained.json")
    curve = [event["val_loss"] for event in validations(plan.run.events())[0]]
    ends = {"val_loss_first": curve[0], "val_loss_last": curve[-1]} if curve else {}
    return {**ends, **figures}


def _newest(checkpoints: StoredCheckpoints) -> int:
    return max(checkpoints.steps(), default=0)


def _what_failed(error: BaseException) -> str:
    """The error itself, in one line: the last that names one, past Ray's traceback and before its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (raised or lines or [type(error).__name__])[-1][:300]


def _fit(plan: Plan, lease: Lease) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config, folder = plan.config, plan.run.folder
    folder.delete_folder(RAY_STATE)
    state = folder.child(RAY_STATE, uuid.uuid4().hex[:8])
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json") | {"model": pinned_model(config.model)},
            "inputs": plan.run.inputs,
            "dataset": plan.checked.dataset.storage.reference(),
            "parents": plan.checked.parents,
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the checker sees the class of Train v1
            name=config.name,
            storage_path=state.path,
            storage_filesystem=state.filesystem,
            failure_config=FailureConfig(max_failures=0),  # `_train_to_the_end` decides
            logging_config=LoggingConfig(log_level="WARNING"),  # state transitions and reports are in Ray's log files
        ),
    )
    try:
        interruptible(trainer.fit, lease.check)
    finally:
        folder.delete_folder(RAY_STATE)
