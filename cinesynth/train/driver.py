"""A training stage on Ray Train: it is planned without Ray, run on a worker group, and recorded."""

from __future__ import annotations

import logging
import re
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinesynth.config import TrainConfig
from cinesynth.errors import AttemptFailed, StorageError, user_error
from cinesynth.lease import Lease, held
from cinesynth.report.training import write_train_report
from cinesynth.runs import Run, records_its_end
from cinesynth.session import check_room, interruptible, ray_session
from cinesynth.train.beside import OnValidation, Paced, Reporter, pinned, queue_of, settle_placement
from cinesynth.train.check import Checked, check_training
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.ending import Ending
from cinesynth.train.events import validations
from cinesynth.train.failures import Failures
from cinesynth.train.telemetry import GroupGauges
from cinesynth.train.validations import Validations
from cinesynth.train.worker import train_worker
from cinesynth.wan.adapter import add_metrics

log = logging.getLogger("cinesynth.train")

RAY_STATE = "ray"
"""Folder of a run with what Ray Train notes of a worker group that is alive; nothing is read from it again."""


@dataclass(frozen=True)
class Plan:
    """A training stage whose inputs were checked, before a worker starts."""

    config: TrainConfig
    run: Run
    checked: Checked


def plan_training(config: TrainConfig) -> Plan:
    """Check dataset, base and parents, and open the run. Raises CinesynthError; needs no Ray."""
    checked = check_training(config)
    return Plan(config, Run.open(config, checked.inputs), checked)


@records_its_end
def train(config: TrainConfig, callbacks: Sequence[OnValidation] = ()) -> dict[str, Any]:
    """Train on a clips dataset, from where a former try of this run stopped; returns the run's result.

    Args:
        config: of the training.
        callbacks: called in this process, once for each validation of the run, those of former tries among them. What
            one raises ends the training: the workers end after the step that they are in, and it is raised here.
    """
    plan = plan_training(config)
    reporter = Reporter(plan.run, callbacks)
    if (done := plan.run.result()) is not None:
        log.info("run %s is complete; nothing to do", config.name)
        reporter.look()
        return done
    with held(plan.run) as lease, ray_session(config):
        check_room(config.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0, config.resources)
        _train_to_the_end(plan, lease, reporter)
        figures = _deliver(plan)
    reporter.look()
    made = "adapter" if config.mode == "lora" else "model"
    outputs = {made: plan.run.folder.child(made).uri, "report": write_train_report(config, plan.run)}
    return plan.run.finish(outputs, figures)


def _train_to_the_end(plan: Plan, lease: Lease, reporter: Reporter) -> None:
    """Start worker groups until one trains to the end, and have all validated that is to be.

    A group that failed is started again from the last checkpoint, unless what failed would fail again. Failures count
    until there is a newer checkpoint.
    """
    config = plan.config
    checkpoints = StoredCheckpoints(plan.run.folder.child("checkpoints"))
    placement = settle_placement(config)
    queue = queue_of(config, plan.checked, plan.run, checkpoints)
    beside = Paced([reporter.look, *([queue.look] if queue is not None and placement == "task" else [])])
    ending = Ending(plan.run.folder)

    def check() -> None:
        lease.check()
        ending.watch(beside)

    gauges, failures = GroupGauges(config.name), Failures(plan.run.folder, config.max_failures)
    while not _is_trained(plan, checkpoints):
        try:
            with gauges.training():
                _fit(plan, placement, check)
            ending.raise_any()
            break
        except Exception as e:
            ending.raise_any()
            found = user_error(e)
            if found is not None and not isinstance(found, AttemptFailed):
                raise
            gauges.failed()
            if not failures.another():
                raise
            log.warning(
                "the workers failed after step %d (%s); they start again (%s)", failures.step, _what_failed(e), failures
            )
    if queue is not None:

        def check_now() -> None:  # there are no workers to wait for
            check()
            ending.raise_any()

        queue.finish(check_now)


def _is_trained(plan: Plan, checkpoints: StoredCheckpoints) -> bool:
    """Whether a former try left nothing to train, but may have left checkpoints to validate."""
    config, folder = plan.config, plan.run.folder
    if config.mode == "full":
        # An older version wrote it after fewer steps, too, where the training was called off.
        return folder.exists("trained.json") and folder.read_json("trained.json")["steps"] == config.optimizer.steps
    if config.early_stop is not None and Validations(folder, config).verdict().ends_at is not None:
        return True
    return config.optimizer.steps in checkpoints.steps() and checkpoints.has_adapter(config.optimizer.steps)


def _deliver(plan: Plan) -> dict[str, Any]:
    """Put the adapter of the checkpoint that counts into the run's folder; returns the run's figures."""
    config, folder = plan.config, plan.run.folder
    if config.mode == "full":
        trained = folder.read_json("trained.json")
        return _held_out_ends(plan, trained["steps"]) | trained
    step, found = config.optimizer.steps, {}
    if config.early_stop is not None:
        by_videos = Validations(folder, config)
        verdict, records = by_videos.verdict(), by_videos.records()
        step = step if verdict.best is None else verdict.best
        found = {"lpips": records[step]["figures"]["lpips"]} if step in records else {}
        if verdict.ends_at is not None:
            log.info("LPIPS stopped falling: training ends by the validation of step %d", verdict.ends_at)
            found["stopped_at"] = verdict.ends_at
        log.info("the adapter of step %d is delivered: LPIPS %.4f", step, found.get("lpips", float("nan")))
    checkpoints = StoredCheckpoints(folder.child("checkpoints"))
    figures = checkpoints.figures(step)
    with tempfile.TemporaryDirectory() as local:
        adapter = checkpoints.adapter(step, Path(local) / "adapter")
        if adapter is None:
            raise StorageError(f"the checkpoint of step {step} in {checkpoints.folder.uri} has no adapter")
        sha256 = add_metrics(adapter, found).sha256
        folder.upload_folder(adapter, "adapter")
    trained = {"loss_last": figures["loss"], "steps": step, "adapter_sha256": sha256}
    folder.write_json("trained.json", trained)
    return _held_out_ends(plan, step) | found | trained


def _held_out_ends(plan: Plan, last: int) -> dict[str, float]:
    """The first held-out loss, and that of the newest validation up to the step that is delivered."""
    curve = [event["val_loss"] for event in validations(plan.run.events())[0] if event["step"] <= last]
    return {"val_loss_first": curve[0], "val_loss_last": curve[-1]} if curve else {}


def _what_failed(error: BaseException) -> str:
    """The error itself, in one line: the last that names one, past Ray's traceback and before its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (raised or lines or [type(error).__name__])[-1][:300]


def _fit(plan: Plan, placement: str | None, check: Callable[[], None]) -> None:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config, folder = plan.config, plan.run.folder
    folder.delete_folder(RAY_STATE)
    state = folder.child(RAY_STATE, uuid.uuid4().hex[:8])
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": pinned(config),
            "placement": placement,
            "inputs": plan.run.inputs,
            "dataset": plan.checked.dataset.storage.reference(),
            "parents": plan.checked.parents,
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
            **config.resources.options(1 if config.use_gpu else 0),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the checker sees the class of Train v1
            name=config.name,
            storage_path=state.path,
            storage_filesystem=state.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),  # a pointer to ours
            failure_config=FailureConfig(max_failures=0),  # `_train_to_the_end` decides
            logging_config=LoggingConfig(log_level="WARNING"),  # state transitions and reports are in Ray's log files
        ),
    )
    try:
        interruptible(trainer.fit, check)
    finally:
        folder.delete_folder(RAY_STATE)
