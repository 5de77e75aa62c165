"""The Ray Serve application: Ingress -> Dispatcher -> Engine.

Ingress (CPU only) answers HTTP. Dispatcher holds the job table and calls the engines. An engine that is called leases
a job from the Dispatcher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Concatenate

from fastapi import FastAPI
from ray import serve as ray_serve

from cinesynth.registry import Registry
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_file, sha256_json
from cinesynth.wan.folder import base_hash
from serve.api import create_api
from serve.auth import KeyRing
from serve.config import ServeConfig
from serve.dispatch import DISPATCHER, Dispatcher, DispatcherJobs, open_store
from serve.engine import Engine, Groups, rank_group
from serve.errors import ApiError
from serve.jobs import JobStore, P, T
from serve.records import DatabaseFull

APP = "cinesynth"
DISPATCHER_TIMEOUT_S = 15.0
HEAD = "node:__internal_head__"
"""Resource that Ray gives to the head alone."""


class ClientJobs:
    """`Jobs` of the Dispatcher for HTTP. Raises ApiError 503 while the Dispatcher does not answer."""

    def __init__(self, dispatcher: Any) -> None:
        self._jobs = DispatcherJobs(dispatcher)

    async def __call__(
        self, operation: Callable[Concatenate[JobStore, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            return await asyncio.wait_for(self._jobs(operation, *args, **kwargs), DISPATCHER_TIMEOUT_S)
        except DatabaseFull:
            raise
        except Exception as e:
            message = f"the job table does not answer ({type(e).__name__}); try again"
            raise ApiError(503, "unavailable", message, headers={"Retry-After": "5"}) from e


class Ingress:
    """The deployment "Ingress": it answers HTTP.

    Args:
        config: resolved configuration.
        dispatcher: handle of the Dispatcher.
        base_sha256: hash of the served transformer.
        release: names what was deployed.
    """

    def __init__(self, config: ServeConfig, dispatcher: Any, base_sha256: str, release: str) -> None:
        self.config, self.dispatcher, self.base_sha256, self.release = config, dispatcher, base_sha256, release

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(
            self.config,
            ClientJobs(self.dispatcher),
            KeyRing(self.config.keys_path()),
            Registry(Storage.open(self.config.storage)),
            self.base_sha256,
            echo_request_id=False,  # Serve's proxy does
            release=self.release,
        )


def build(args: dict[str, Any]) -> ray_serve.Application:
    """The application for `serve deploy` and KubeRay's RayService: `import_path: serve.app:build`.

    Args:
        args: fields of `ServeConfig`; `host` and `port` are Serve's own `http_options` there.

    Raises CinesynthError for what the service could not run with.
    """
    return build_app(parse_config(ServeConfig, args))


def build_app(config: ServeConfig, groups: Groups = rank_group) -> ray_serve.Application:
    """The application for `ray.serve.run`.

    Args:
        config: of the service.
        groups: makes each engine's group.

    Raises CinesynthError for what the service could not run with.
    """
    config.check_inputs()
    config = config.resolved()
    base_sha256 = base_hash(config.model)
    store = open_store(config)  # finds a bad database here, not in a replica that restarts for ever
    drain_s = drain_seconds(config, store.predicted(config.largest_flops()))
    store.close()
    settings, bundles, labels = config.engine, config.bundles(), config.engine.group.pool.selector()
    where: Any = {"placement_group_bundle_label_selector": [labels] * len(bundles)} if labels else {}
    quiet = {"enable_access_log": False}  # a line for every heartbeat helps nobody; the Ingress keeps its own log
    engine = ray_serve.deployment(
        name="Engine",
        max_ongoing_requests=1,
        # The replica itself directs the group and mostly waits: it reserves nothing of its own.
        ray_actor_options={"num_cpus": 0, "num_gpus": 0},
        placement_group_bundles=bundles,
        placement_group_strategy="STRICT_PACK",
        **where,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": 1,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": settings.idle_s,
        },
        graceful_shutdown_timeout_s=drain_s,
        health_check_period_s=5,
        health_check_timeout_s=10,  # three in a row that are not answered, and the replica is killed
        logging_config=quiet,
    )(Engine)
    # Dispatcher and Ingress mostly wait, and reserve no CPU. The job table is one replica's alone.
    dispatcher = ray_serve.deployment(
        name=DISPATCHER,
        num_replicas=1,
        max_ongoing_requests=1000,
        # On the head, where a database on a local disk lies.
        ray_actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}},
        logging_config=quiet,
    )(Dispatcher)
    ingress = ray_serve.deployment(
        name="Ingress",
        num_replicas=config.ingress.replicas,
        max_ongoing_requests=config.ingress.slots,  # bodies that arrive have slots of their own
        ray_actor_options={"num_cpus": 0},
    )(ray_serve.ingress()(Ingress))
    engines = engine.bind(config, groups, base_sha256=base_sha256)
    dispatching = dispatcher.bind(config, engines, base_sha256=base_sha256)
    return ingress.bind(config, dispatching, base_sha256, release_of(config, groups))


def release_of(config: ServeConfig, groups: Groups = rank_group) -> str:
    """Names a deployment by all that its replicas depend on: the code, the configuration and the model."""
    told = config.resolved().model_dump(mode="json")
    return sha256_json([_code(), told, base_hash(config.model), getattr(groups, "__qualname__", repr(groups))])[:16]


@lru_cache
def _code() -> str:
    root = Path(__file__).parent.parent
    files = sorted(path for part in ("serve", "cinesynth") for path in (root / part).rglob("*.py"))
    return sha256_json([[path.relative_to(root).as_posix(), sha256_file(path)] for path in files])


def drain_seconds(config: ServeConfig, longest_s: float) -> float:
    """How long an engine may go on with its video when it is taken away: the longest predicted one, and half more."""
    return config.engine.drain_s if config.engine.drain_s is not None else max(60.0, 1.5 * longest_s)
