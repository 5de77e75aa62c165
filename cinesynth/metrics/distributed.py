"""Metric networks on Ray actors. The only file of this package that imports Ray, and only when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.metrics.features import (
    Batch,
    Call,
    Decoded,
    Executor,
    LocalExecutor,
    Networks,
    device_name,
    pick_device,
    read_ahead,
)
from cinesynth.session import check_room, ray_session

_QUEUED = 2  # batches per actor: one that runs and one that waits, so decoding overlaps


@contextmanager
def executor_for(config: EvaluateConfig) -> Iterator[type[Executor]]:
    """Ray actors where this process is connected, a cluster is named, or more than one worker is asked for; else
    this process, without Ray.

    Raises ConfigError when workers are asked for and no cluster is known.
    """
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if not (connected or config.workers > 1 or config.ray.address or os.environ.get("RAY_ADDRESS")):
        yield LocalExecutor
        return
    if connected:
        yield RayExecutor
        return
    with ray_session(config):
        yield RayExecutor


class RayExecutor:
    """Runs batches on `settings.workers` actors. The caller decodes, so files need not be visible to other nodes.

    An actor that dies is restarted and its batches are run again, up to three times. Raises ConfigError when the
    cluster cannot hold the workers.
    """

    def __init__(self, networks: Networks, settings: EvaluateSettings) -> None:
        import ray

        gpus = 1 if settings.use_gpu else 0
        check_room(settings.workers, settings.cpus_per_worker, gpus, settings.resources)
        self._ray = ray
        actor = ray.remote(
            num_cpus=settings.cpus_per_worker,
            num_gpus=gpus,
            max_restarts=3,
            max_task_retries=3,
            **settings.resources.options(gpus),
        )(MetricWorker)
        shared = ray.put(networks)
        arguments = (shared, settings.use_gpu, settings.cpus_per_worker)
        self._actors: list[Any] = [actor.remote(*arguments) for _ in range(settings.workers)]
        self.device = str(ray.get(self._actors[0].device.remote()))

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[int, list[NDArray[np.float64]]]]:
        """Place of a batch and the output of its calls, as they finish; at most two an actor are in flight."""
        running: dict[Any, tuple[int, Any]] = {}
        idle = [actor for _ in range(_QUEUED) for actor in self._actors]
        for place, decoded in read_ahead(batches):
            if not idle:
                yield self._finished(running, idle)
            actor = idle.pop(0)
            running[actor.run.remote(batches[place].calls, decoded)] = (place, actor)
        while running:
            yield self._finished(running, idle)

    def _finished(self, running: dict[Any, tuple[int, Any]], idle: list[Any]) -> tuple[int, list[NDArray[np.float64]]]:
        (ready, *_), _ = self._ray.wait(list(running))
        place, actor = running.pop(ready)
        idle.append(actor)
        return place, self._ray.get(ready)

    def close(self) -> None:
        """Give the actors' resources back."""
        for actor in self._actors:
            self._ray.kill(actor)


class MetricWorker:
    """An actor that runs the networks; the dashboard names it by its `repr`."""

    def __init__(self, networks: Networks, use_gpu: bool, cpus: float) -> None:
        import cv2
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        cv2.setNumThreads(max(1, int(cpus)))
        self._networks = networks.to(pick_device(use_gpu))

    def __repr__(self) -> str:
        return f"MetricWorker({', '.join(self._networks.names)})"

    def device(self) -> str:
        return device_name(self._networks.device)

    def run(self, calls: Sequence[Call], decoded: list[Decoded]) -> list[NDArray[np.float64]]:
        return self._networks.run_all(calls, decoded)
