"""Processes die: a job that was accepted ends, and ends once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cinesynth.data.video import read_video
from cinesynth.settings import parse_config
from cluster.local import free_ports
from serve.auth import create_key
from serve.config import ServeConfig
from serve.dispatch import open_store
from serve.jobs import Job
from serve.run import deploy
from tests.conftest import Head
from tests.serve.drawing import FileGated

pytestmark = pytest.mark.slow


def until(condition: Callable[[], Any], what: str, timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {timeout_s} s")


class Service:
    """The deployed application with a generator that waits for a file, and a view into its job table."""

    def __init__(self, config: ServeConfig, client: httpx.Client, gate: Path) -> None:
        self.config, self.client, self.gate = config, client, gate
        self.store = open_store(config)

    def submit(self, image: bytes) -> str:
        files = {"input_reference": ("first.png", image)}
        created = self.client.post("/v1/videos", data={"prompt": "a bar", "num_frames": "9"}, files=files)
        assert created.status_code == 200, created.text
        return created.json()["id"]

    def pids(self) -> list[int]:
        """Processes that started a video, in order."""
        path = self.gate / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def job(self, video_id: str) -> Job:
        job = self.store.get(video_id)
        assert job is not None
        return job

    def finished(self, video_id: str) -> Job:
        return until(lambda: (j := self.job(video_id)).status in ("completed", "failed") and j, "the video's end")


@pytest.fixture
def service(ray_head: Head, tmp_path: Path) -> Iterator[Service]:
    from ray import serve as ray_serve

    gate = tmp_path / "gate"
    gate.mkdir()
    values = {
        "model": "nano",  # for the base's hash only
        "storage": str(tmp_path / "storage"),
        "port": free_ports(1)[0],
        "sizes": [[64, 96]],
        "max_frames": 17,
        "default_frames": 9,
        "lease_s": 20,
        "heartbeat_s": 0.2,
        "engine": {"cpus": 0.5, "drain_s": 0},
    }
    config = parse_config(ServeConfig, values)
    key = create_key(config.keys_path(), "alice")
    folder = str(gate)
    try:
        url = deploy(config, lambda model, device: FileGated(folder))
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            yield Service(config, client, gate)
    finally:
        (gate / "go").touch()
        ray_serve.shutdown()


def replica_pid(deployment: str) -> int:
    from ray.util.state import list_actors

    alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    pids = [actor.pid for actor in alive if f"#{deployment}#" in (actor.name or "")]
    assert len(pids) == 1, pids
    return int(pids[0])


def test_a_killed_engine_and_a_killed_dispatcher_lose_no_video(service: Service, png: bytes) -> None:
    first = service.submit(png)
    (victim,) = until(service.pids, "the first attempt")
    second = service.submit(png)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(service.pids()) == 2, "the second attempt")
    assert service.pids()[1] != victim
    assert (service.job(first).status, service.job(first).attempts) == ("in_progress", 2)

    os.kill(replica_pid("Dispatcher"), signal.SIGKILL)
    until(lambda: service.client.get("/readyz").status_code == 200, "the dispatcher's return")
    (service.gate / "go").touch()
    done = service.finished(first)
    assert (done.status, done.attempts) == ("completed", 2), "the attempt that ran meanwhile is the one that counts"
    assert service.finished(second).status == "completed"
    for video_id in (first, second):
        name = service.job(video_id).result
        assert name is not None
        assert read_video(service.config.results() / name)[0].shape == (9, 64, 96, 3)
    assert len(list(service.config.results().iterdir())) == 2
