"""The service in this process for tests of its pages: the API on a free port, and an engine that draws."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from cinesynth.data.video import write_video
from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve.api import create_api
from serve.auth import KeyRing
from serve.config import ServeConfig
from serve.jobs import Job, JobStore, LocalJobs
from serve.schema import JobRequest
from tests.serve.conftest import BASE_SHA256


@dataclass
class Service:
    """A running service.

    Attributes:
        url: of the server.
        working: cleared, the engine rests before the next step.
        lost_answers: so many of the next requests are done, but what is between answers 502.
        done: the jobs that the engine was given.
    """

    url: str
    store: JobStore
    lost_answers: int = 0
    working: threading.Event = field(default_factory=threading.Event)
    done: list[Job] = field(default_factory=list)


@contextmanager
def running_service(config: ServeConfig, store: JobStore) -> Iterator[Service]:
    """Serve on a free port of the loopback address, with one engine."""
    api = create_api(
        config, LocalJobs(store), KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256
    )
    service = Service("", store)

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        if not service.lost_answers or scope["method"] != "POST":
            return await api(scope, receive, send)
        service.lost_answers -= 1

        async def nowhere(_: Message) -> None:
            pass

        await api(scope, receive, nowhere)
        await PlainTextResponse("Bad Gateway", 502)(scope, receive, send)

    server = uvicorn.Server(
        uvicorn.Config(
            between, host="127.0.0.1", port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
    )
    threads = [threading.Thread(target=server.run, daemon=True)]
    threads[0].start()
    while not server.started:
        time.sleep(0.01)
    service.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    service.working.set()
    stopped = threading.Event()
    threads.append(threading.Thread(target=_engine, args=(config, service, stopped), daemon=True))
    threads[1].start()
    try:
        yield service
    finally:
        stopped.set()
        service.working.set()
        server.should_exit = True
        for thread in threads:
            thread.join(10)


def _engine(config: ServeConfig, service: Service, stopped: threading.Event) -> None:
    """Makes one job after another: the first frame, over which a bar moves, white with an adapter."""
    while not stopped.is_set():
        lease = service.store.lease_next("engine", loaded=[None])
        if lease is None:
            stopped.wait(0.05)
            continue
        job, token = lease.job, lease.token
        service.done.append(job)
        request = JobRequest.model_validate(job.request)
        for step in range(request.sampler.steps):
            service.working.wait()
            if stopped.wait(0.05) or not service.store.heartbeat(job.id, token, 100 * step // request.sampler.steps):
                break
        else:
            path = config.results() / f"{job.id}.{token}.mp4"
            write_video(path, _drawn(config.inputs() / job.image, request.num_frames, bool(request.adapters)))
            service.store.complete(job.id, token, path.name, "00" * 32)


def _drawn(first: Path, num_frames: int, bright: bool) -> np.ndarray:
    frames = np.repeat(np.asarray(Image.open(first))[None], num_frames, axis=0)
    width = frames.shape[2]
    for t in range(num_frames):
        frames[t, :, t * (width - 8) // num_frames :][:, :8] = 255 if bright else 40
    return frames
