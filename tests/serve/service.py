"""The deployed application for tests: a drawing that waits for a file, over HTTP, and a view into its job table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cinesynth.data.video import read_video
from cinesynth.settings import parse_config
from cluster.local import free_ports
from serve.auth import create_key
from serve.config import ServeConfig
from serve.dispatch import open_store
from serve.engine import Groups, rank_group
from serve.jobs import Job
from serve.run import deploy
from tests.serve.drawing import FileGated

STEPS = 12


def until(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """What a condition gives, once it is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {timeout_s} s")


class Service:
    """A running service.

    Args:
        config: of it.
        groups: that its engines were made with.
        client: of a key.
        gate: folder of `FileGated`.
    """

    def __init__(self, config: ServeConfig, groups: Groups, client: httpx.Client, gate: Path) -> None:
        self.config, self.groups, self.client, self.gate = config, groups, client, gate
        self.store = open_store(config)

    def submit(self, image: bytes, **fields: str) -> str:
        """The id of a queued video."""
        files = {"input_reference": ("first.png", image)}
        created = self.client.post("/v1/videos", data={"prompt": "a bar", "num_frames": "9", **fields}, files=files)
        assert created.status_code == 200, created.text
        return created.json()["id"]

    def pids(self, rank: int = 0) -> list[int]:
        """Processes that started a video as this rank, in order."""
        path = self.gate / f"pids.{rank}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def began(self) -> list[int]:
        """Steps that finished videos began at, in order."""
        path = self.gate / "began"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def open(self) -> None:
        """Let all videos go on."""
        (self.gate / "go").touch()

    def shut(self) -> None:
        """Let videos wait after their second step, and forget which there were."""
        for path in self.gate.iterdir():
            path.unlink()

    def job(self, video_id: str) -> Job:
        job = self.store.get(video_id)
        assert job is not None
        return job

    def state_kept(self, video_id: str) -> bool:
        """Whether a state of the video is there to go on from."""
        return any(path.name.startswith(video_id) for path in self.config.states().iterdir())

    def finished(self, video_id: str) -> Job:
        """The job, once it has ended."""
        return until(lambda: (j := self.job(video_id)).status in ("completed", "failed") and j, "the video's end")

    def frames(self, video_id: str) -> np.ndarray:
        """uint8 RGB [T, H, W, 3] of a finished video."""
        name = self.job(video_id).result
        assert name is not None
        return read_video(self.config.results() / name)[0]


def small_service(folder: Path, **engine: Any) -> dict[str, Any]:
    """Fields of the configuration of a service whose state lies below a folder. `engine`: fields of its settings."""
    return {
        "model": "nano",
        "storage": str(folder / "storage"),
        "port": free_ports(1)[0],
        "sizes": [[64, 96]],
        "max_frames": 17,
        "default_frames": 9,
        "defaults": {"num_inference_steps": STEPS, "guidance_scale": 1.0},
        "lease_s": 20,
        "heartbeat_s": 0.2,
        "target_wait_s": 1,
        "engine": {"drain_s": 0, "keep_every": 2, **engine},
    }


def drawing_groups(gate: Path) -> Groups:
    """Makes groups that draw, as far as the gate lets them."""
    return partial(rank_group, generator=partial(FileGated, str(gate)))


@contextmanager
def serving(folder: Path, drawing: bool = True, **engine: Any) -> Iterator[Service]:
    """A service on the connected cluster, with nano or a drawing. `engine`: fields of its settings."""
    from ray import serve as ray_serve

    gate = folder / "gate"
    gate.mkdir()
    groups = drawing_groups(gate) if drawing else rank_group
    config = parse_config(ServeConfig, small_service(folder, **engine))
    key = create_key(config.keys_path(), "alice")
    try:
        url = deploy(config, groups)
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            yield Service(config, groups, client, gate)
    finally:
        (gate / "go").touch()
        ray_serve.shutdown()


def processes_of(*names: str) -> list[int]:
    """Living actors whose class or name holds one of these."""
    from ray.util.state import list_actors

    alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return [int(actor.pid) for actor in alive if any(name in f"{actor.class_name} {actor.name}" for name in names)]


def replica_pid(deployment: str) -> int:
    """The process of the only replica."""
    (pid,) = processes_of(f"#{deployment}#")
    return pid
