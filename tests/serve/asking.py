"""What the tests of the HTTP interface ask with, and the engine's part in answering."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from httpx import Response

from cinesynth.data.video import write_video
from cluster.local import free_ports
from serve.config import ServeConfig
from serve.jobs import JobStore


def post(client: TestClient, image: bytes | None, **fields: Any) -> Response:
    files = {} if image is None else {"input_reference": ("frame", image, "application/octet-stream")}
    # httpx sends multipart only when there is a file: an empty prompt-only form still has to be one.
    parts: list[Any] = [(name, (None, str(value))) for name, value in fields.items()]
    return client.post("/v1/videos", files=[*parts, *files.items()])


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def error(response: Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert {"message", "type", "code", "param"} <= set(body["error"])
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    return body["error"]


def finish(config: ServeConfig, store: JobStore, frames: int = 9) -> bytes:
    """Do an engine's work on the next job; returns the MP4's bytes."""
    lease = store.lease_next("engine")
    assert lease is not None
    name = f"{lease.job.id}.{lease.token}.mp4"
    path = write_video(config.results() / name, np.zeros((frames, 64, 96, 3), np.uint8))
    assert store.complete(lease.job.id, lease.token, name, "00")
    return path.read_bytes()


@contextmanager
def served(api: Any) -> Iterator[str]:
    """The application behind uvicorn on a free port; gives its URL."""
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
