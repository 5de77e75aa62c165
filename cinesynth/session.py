"""Connecting a job's driver to the Ray cluster that its configuration names."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cinesynth.config import JobConfig
from cinesynth.errors import ConfigError
from cinesynth.log_filter import without_actor_notes
from cinesynth.pool import Pool
from cinesynth.storage import scratch_folder
from cinesynth.waiting import waits_told

Result = TypeVar("Result")

_GLANCE_S = 0.2
_ANSWER_S = 10.0
"""Seconds in which a Ray head takes a connection, and again in which it answers."""


@contextmanager
def ray_session(config: JobConfig) -> Iterator[None]:
    """Connect to the cluster that the configuration names, for as long as the block runs; what waits for room is told.

    Raises ConfigError when no address is known (a fresh head is never started behind the user's back), or when no head
    answers there.
    """
    import ray

    if ray.is_initialized():  # a job inside another one, such as a trial of a search
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "ray.address: no Ray cluster is known; submit with `python -m jobs.submit "
            f"{config.kind} ...`, or set ray.address=HOST:PORT, or ray.address=local for a private one"
        )
    check_head(address, "ray.address")
    interpreter = sys.executable
    if address == "local":
        sys.executable = interpreter_for_ray(scratch_folder("environments"))
    try:
        with without_actor_notes():
            connect(address, "ray.address", log_to_driver=True)
            try:
                with waits_told():
                    yield
            finally:
                ray.shutdown()
    finally:
        sys.executable = interpreter


def interruptible(call: Callable[[], Result], check: Callable[[], None] = lambda: None) -> Result:
    """The result of a call that waits on Ray, made in a thread of its own so that Ctrl-C and SIGTERM end the wait.

    What `check` raises, which is called while it waits, ends the wait too.

    In the main thread, Ray Train answers Ctrl-C by asking its controller, which does not listen while it waits for
    resources. An interrupted call is left to end with the session.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as e:  # whatever it is, it is raised where the call was made
            errors.append(e)
        finally:
            ended.set()

    threading.Thread(target=run, name="waits-on-ray", daemon=True).start()
    while not ended.wait(_GLANCE_S):  # a signal that another thread took is seen here too
        check()
    if errors:
        raise errors[0]
    return results[0]


def check_room(workers: int, cpus: float, gpus: float, pool: Pool) -> None:
    """Raise ConfigError, with the arithmetic, for more workers than the pool's nodes in the connected cluster can hold.

    Ray itself waits for ever. A cluster that adds nodes is measured by how far it may grow, where its autoscaler tells;
    else nothing is refused, as pools may have no node until work asks for one.

    Args:
        workers: processes that are needed at once.
        cpus, gpus: of each.
        pool: nodes that may take them.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and pool.takes(node["Labels"])]
    check_capacity(workers, {"CPU": cpus, "GPU": gpus}, pool, nodes, most_resources())


def most_resources() -> Mapping[str, float] | None:
    """Resources that an autoscaler may bring the connected cluster to; None where there is none.

    Ray's own autoscaler (v2, as `ray up` and KubeRay start it) tells no limit: then there is none.
    """
    from ray._private.state import state
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    told: Mapping[str, float] | None = state.get_max_resources_from_cluster_config()
    if told is None and is_autoscaler_v2(fetch_from_server=True):
        return dict.fromkeys(("CPU", "GPU"), sys.maxsize)
    return told


def check_capacity(
    workers: int,
    each: Mapping[str, float],
    pool: Pool,
    nodes: Sequence[Mapping[str, float]],
    most: Mapping[str, float] | None,
) -> None:
    """`check_room` of a cluster that is told.

    Args:
        workers: how many are asked for.
        each: what each takes; a worker lies on one node.
        pool: nodes that may take them.
        nodes: resources of those that are there and have the pool's labels.
        most: resources that an autoscaler may bring the cluster to; None where there is none.
    """
    needs = {name: need for name, need in each.items() if need}
    fit = sum(_fitting(needs | pool.resources(each.get("GPU", 0)), node) for node in nodes)
    if max(fit, _fitting(needs, most or {})) >= workers:
        return
    takes = " and ".join(f"{need:g} {name}" for name, need in needs.items())
    if not fit and pool.told():
        raise ConfigError(
            f"resources: no node of the cluster is of the pool {pool.told()} and holds a worker of {takes}; start such "
            "nodes, or change resources.accelerator and resources.labels"
        )
    held = ", ".join(" and ".join(f"{node.get(name, 0):g} {name}" for name in needs) for node in nodes)
    raise ConfigError(
        f"workers = {workers}: each takes {takes}; the cluster's nodes ({held}) hold {fit} such workers: "
        f"set workers={max(fit, 1)}, or ask for less each"
    )


def _fitting(needs: Mapping[str, float], there: Mapping[str, float]) -> int:
    return int(min((there.get(name, 0) + 1e-6) / need for name, need in needs.items()))


def connect(address: str, key: str, log_to_driver: bool) -> None:
    """`ray.init` at the address that the option `key` gave. Raises ConfigError when no cluster can be used there.

    SIGTERM goes on meaning what the process made it mean: the handler that Ray sets for a private cluster ends its
    processes first, and this one with them, before a run can record that it was stopped.
    """
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.WARNING)
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise ConfigError(f"{key}: no Ray cluster can be used at {address!r}: {reason[:300]}") from e


def check_head(address: str, key: str) -> None:
    """Raise ConfigError unless a Ray head answers at HOST:PORT within seconds; Ray itself waits a quarter of an hour.

    Passed over are `local`, `auto` and a Ray client's `ray://`, which are Ray's own to resolve.
    """
    if address in ("local", "auto") or address.startswith("ray://"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError(
            f"{key}: {address!r} is not HOST:PORT of a running head (the port of its GCS, 6379 by default)"
        )
    advice = f"start the head, or correct {key} or RAY_ADDRESS"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as e:
        raise ConfigError(f"{key}: nothing listens at {address}: {e}; {advice}") from e
    encrypted = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")  # the check speaks no TLS; Ray does
    if not encrypted and not _answers(address):
        raise ConfigError(
            f"{key}: what listens at {address} did not answer as a Ray head within {_ANSWER_S:g} s; {advice}"
        )


def _answers(address: str) -> bool:
    """Whether the global control service there becomes ready: over its own protocol, without Ray's long retries."""
    import grpc

    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def interpreter_for_ray(folder: Path) -> str:
    """This interpreter by a path without spaces; a link to its environment is made in `folder` where it takes one.

    Ray hands the path of a worker's interpreter to a shell without quotes.
    """
    if " " not in sys.executable:
        return sys.executable
    link = folder / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    if not link.is_symlink():
        temporary = link.with_name(f".{link.name}-{os.getpid()}-{time.monotonic_ns()}")
        temporary.symlink_to(sys.prefix, target_is_directory=True)
        os.replace(temporary, link)
    return str(link / "bin" / Path(sys.executable).name)
