"""What the driver does while the workers train: it has checkpoints validated on resources of their own, and tells
callbacks of every validation."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cinesynth.config import TrainConfig
from cinesynth.errors import ConfigError
from cinesynth.runs import Run
from cinesynth.session import check_room
from cinesynth.train.check import Checked
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.validations import FOLDER, ValidationQueue, Validations
from cinesynth.train.videos import validate_checkpoint
from cinesynth.wan.folder import pinned_model

log = logging.getLogger("cinesynth.train")

OnValidation = Callable[[int, Mapping[str, float]], None]
"""Takes a validation's step and figures: `val_loss` and those by noise level, or `lpips` and those beside it."""


def pinned(config: TrainConfig) -> dict[str, Any]:
    """The configuration for other processes: its model is one that cannot change."""
    return config.model_dump(mode="json") | {"model": pinned_model(config.model)}


class Reporter:
    """Tells callbacks of a run's validations, each once.

    Args:
        run: whose validations.
        callbacks: that are told.
    """

    def __init__(self, run: Run, callbacks: Sequence[OnValidation]) -> None:
        self.run, self.callbacks = run, callbacks
        self._seen: dict[str, tuple[int, int]] = {}
        self._told: set[tuple[int, str]] = set()

    def look(self) -> None:
        """Tell of those that are new, in the order of steps."""
        if not self.callbacks:
            return
        found: list[tuple[int, str, dict[str, float]]] = []
        for name in self._changed("events"):
            events = [json.loads(line) for line in self.run.folder.read_text(name).splitlines() if line]
            found += [(e["step"], "held-out", _loss_figures(e)) for e in events if "val_loss" in e]
        for name in self._changed(FOLDER):
            record = self.run.folder.read_json(name)
            found.append((record["step"], "videos", record["figures"]))
        for step, kind, figures in sorted(found, key=lambda item: item[:2]):
            if (step, kind) not in self._told:
                self._told.add((step, kind))
                for callback in self.callbacks:
                    callback(step, figures)

    def _changed(self, folder: str) -> Iterator[str]:
        """Files that were not read yet as they are now: a try that goes on writes the segments of events after its
        checkpoint anew, of which the one before may have left a part."""
        for name, version in self.run.folder.versions(folder).items():
            if self._seen.get(name) != version:
                yield name
                self._seen[name] = version


def _loss_figures(event: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in event.items() if name.startswith("val_loss")}


class Paced:
    """Calls functions at most every few seconds, however often it is called."""

    def __init__(self, functions: Sequence[Callable[[], None]], every_s: float = 2.0) -> None:
        self.functions, self.every_s = functions, every_s
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            for function in self.functions:
                function()
            self._next = time.monotonic() + self.every_s


def settle_placement(config: TrainConfig) -> str | None:
    """Where validations by videos are made; None where there are none. Raises ConfigError where there is no room."""
    if config.validation_videos is None:
        return None
    asked = config.validation_videos.placement
    gpus = 1.0 if config.use_gpu else 0.0
    if asked not in ("auto", "task"):
        return asked
    try:
        check_room(config.workers + 1, config.cpus_per_worker, gpus, config.resources)
    except ConfigError as e:
        if asked == "task":
            raise ConfigError(
                f"validation_videos.placement: task needs room for a validation beside the workers: {e}; or set it to "
                "inline or after"
            ) from e
        log.info("videos of validations are made by the workers: the cluster has no room beside them")
        return "inline"
    return "task"


def queue_of(config: TrainConfig, checked: Checked, run: Run, checkpoints: StoredCheckpoints) -> ValidationQueue | None:
    """Has the validations done that the workers do not do, as Ray tasks; those too that a former try left."""
    if config.validation_videos is None:
        return None
    found = Validations(run.folder, config)
    task = {
        "config": pinned(config),
        "dataset": checked.dataset.storage.reference(),
        "parents": checked.parents,
    }
    return ValidationQueue(
        lambda: found.missing(checkpoints.steps()),
        lambda step: RayTask.start(config, {**task, "step": step}),
        config.max_failures + 1,
    )


class RayTask:
    """A validation as a Ray task. A `validations.Task`."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    @classmethod
    def start(cls, config: TrainConfig, task: dict[str, Any]) -> RayTask:
        """Start the validation of a step, with the resources of a worker."""
        import ray

        remote = ray.remote(validate_checkpoint).options(
            name=f"validate {config.name} at step {task['step']}",
            num_cpus=config.cpus_per_worker,
            num_gpus=1 if config.use_gpu else 0,
            max_retries=0,
            **config.resources.options(1 if config.use_gpu else 0),
        )
        return cls(remote.remote(task))

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self.ref], timeout=0)[0])

    def result(self) -> Any:
        import ray

        return ray.get(self.ref)

    def cancel(self) -> None:
        import ray

        ray.cancel(self.ref, force=True)
