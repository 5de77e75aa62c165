"""The Ray Serve application: Ingress -> Store -> Engine.

Ingress (CPU only) answers HTTP, Store holds the jobs and calls the engines, engines lease jobs from Store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI
from ray import serve as ray_serve

from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve.api import create_api
from serve.auth import KeyRing
from serve.config import ServeConfig
from serve.dispatch import Store
from serve.engine import Engine, GeneratorFactory, default_generator
from serve.errors import ApiError
from serve.store import Backlog, Job, NewJob, QueueFull

APP = "cinesynth"
STORE_TIMEOUT_S = 15.0
T = TypeVar("T")


class StoreClient:
    """The job store through its deployment handle; 503 while it does not answer."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def create(self, new: NewJob) -> Job | QueueFull:
        return await _answer(self._handle.create.remote(new))

    async def get(self, job_id: str) -> Job | None:
        return await _answer(self._handle.get.remote(job_id))

    async def backlog(self) -> Backlog:
        return await _answer(self._handle.backlog.remote())


async def _answer(response: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(_plain(response), STORE_TIMEOUT_S)
    except Exception as e:
        message = f"the job store does not answer ({type(e).__name__}); try again"
        raise ApiError(503, "unavailable", message, headers={"Retry-After": "5"}) from e


async def _plain(response: Awaitable[T]) -> T:
    return await response


class Ingress:
    """Deployment "Ingress".

    Args:
        config: resolved configuration.
        store: handle of the store deployment.
        base_sha256: hash of the served transformer.
    """

    def __init__(self, config: ServeConfig, store: Any, base_sha256: str) -> None:
        self.config, self.store, self.base_sha256 = config, store, base_sha256

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(
            self.config,
            StoreClient(self.store),
            KeyRing(self.config.keys_path()),
            Registry(Storage.open(self.config.storage)),
            self.base_sha256,
        )


def build_app(
    config: ServeConfig, base_sha256: str, factory: GeneratorFactory = default_generator
) -> ray_serve.Application:
    """The application for `ray.serve.run`.

    Args:
        config: resolved configuration (absolute paths).
        base_sha256: hash of the served transformer.
        factory: makes each engine's generator.
    """
    settings = config.engine
    quiet = {"enable_access_log": False}  # a line for every heartbeat helps nobody; the ingress keeps its own
    engine = ray_serve.deployment(
        name="Engine",
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": 1,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": settings.idle_s,
        },
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=5,
        logging_config=quiet,
    )(Engine)
    # One CPU-less replica each: they wait far more than they work.
    store = ray_serve.deployment(
        name="Store",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        logging_config=quiet,
    )(Store)
    ingress = ray_serve.deployment(
        name="Ingress", num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}
    )(ray_serve.ingress()(Ingress))
    return ingress.bind(config, store.bind(config, engine.bind(config, factory)), base_sha256)
