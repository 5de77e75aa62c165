"""The Ray Serve application: Ingress -> Dispatcher -> Engine.

Ingress (CPU only) answers HTTP. Dispatcher holds the job table and calls the engines. An engine that is called leases
a job from the Dispatcher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Concatenate

from fastapi import FastAPI
from ray import serve as ray_serve

from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve.api import create_api
from serve.auth import KeyRing
from serve.config import ServeConfig
from serve.dispatch import DISPATCHER, Dispatcher, DispatcherJobs
from serve.engine import Engine, GeneratorFactory, default_generator
from serve.errors import ApiError
from serve.jobs import JobStore, P, T

APP = "cinesynth"
DISPATCHER_TIMEOUT_S = 15.0


class ClientJobs:
    """`Jobs` of the Dispatcher for HTTP. Raises ApiError 503 while the Dispatcher does not answer."""

    def __init__(self, dispatcher: Any) -> None:
        self._jobs = DispatcherJobs(dispatcher)

    async def __call__(
        self, operation: Callable[Concatenate[JobStore, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            return await asyncio.wait_for(self._jobs(operation, *args, **kwargs), DISPATCHER_TIMEOUT_S)
        except Exception as e:
            message = f"the job table does not answer ({type(e).__name__}); try again"
            raise ApiError(503, "unavailable", message, headers={"Retry-After": "5"}) from e


class Ingress:
    """The deployment "Ingress": it answers HTTP.

    Args:
        config: resolved configuration.
        dispatcher: handle of the Dispatcher.
        base_sha256: hash of the served transformer.
    """

    def __init__(self, config: ServeConfig, dispatcher: Any, base_sha256: str) -> None:
        self.config, self.dispatcher, self.base_sha256 = config, dispatcher, base_sha256

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(
            self.config,
            ClientJobs(self.dispatcher),
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
    quiet = {"enable_access_log": False}  # a line for every heartbeat helps nobody; the Ingress keeps its own log
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
    # Dispatcher and Ingress mostly wait: each is one replica that reserves no CPU.
    dispatcher = ray_serve.deployment(
        name=DISPATCHER,
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        logging_config=quiet,
    )(Dispatcher)
    ingress = ray_serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=10_000,  # bodies that arrive have slots of their own; all else is answered meanwhile
        ray_actor_options={"num_cpus": 0},
    )(ray_serve.ingress()(Ingress))
    return ingress.bind(config, dispatcher.bind(config, engine.bind(config, factory)), base_sha256)
