"""Jobs as processes on a real Ray: how they end where a worker raises, and where they are stopped while they wait."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cinesynth.storage import Storage
from tests.conftest import REPOSITORY, Head
from tests.tiny_dataset import HEIGHT, WIDTH, encoded_dataset, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the dataset `clips`, and a picture."""
    folder = tmp_path_factory.mktemp("processes")
    encoded_dataset(Storage.open(folder / "storage" / "datasets" / "clips"), "nano", ("train", "train", "val"))
    Image.fromarray(picture(0, 1)[0]).save(folder / "first.png")
    return folder


def start(job: str, head: Head, folder: Path, *options: str) -> subprocess.Popen[str]:
    """A job's process, which writes all that it says to one pipe."""
    command = [sys.executable, "-m", f"jobs.{job}", f"name={job}", f"storage={folder / 'storage'}"]
    return subprocess.Popen(
        [*command, f"ray.address={head.address}", *options],
        cwd=REPOSITORY,
        env=dict(os.environ),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def both_wait(head: Head) -> bool:
    """Whether a training and a generation wait for room: two groups of processes, and a controller of one."""
    from ray.util.state import list_placement_groups

    groups = list_placement_groups(head.dashboard, filters=[("state", "=", "PENDING")], limit=1000)
    return len(groups) >= 2 and bool(head.actors("TrainController"))


def result(folder: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "storage" / "runs" / run / "result.json").read_text())
    return found


def test_what_a_worker_raises_is_the_last_line_of_the_job(ray_head: Head, folder: Path) -> None:
    options = ["dataset=clips", "optimizer.steps=4", "optimizer.lr=1e30", "optimizer.warmup=0", "name=hot"]
    job = start("train", ray_head, folder, *options, "optimizer.batch_size=2", "validation.sigmas=[0.5]")
    lines = job.communicate(timeout=120)[0].splitlines()
    assert job.returncode == 2, lines
    assert re.match(r"error: step \d: loss nan, gradient norm nan, on windows [0-9a-f]", lines[-1])
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    ended = result(folder, "hot")
    assert (ended["status"], lines[-1]) == ("failed", f"error: {ended['reason']}")


def test_jobs_that_wait_for_room_end_at_once_when_they_are_stopped(ray_head: Head, folder: Path) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    taken = placement_group([{"CPU": 4}])
    ray.get(taken.ready(), timeout=60)
    shot = f"{{image: {folder / 'first.png'}, prompt: a wall, num_frames: 5, height: {HEIGHT}, width: {WIDTH}}}"
    jobs = {
        "train": start("train", ray_head, folder, "dataset=clips", "optimizer.batch_size=2"),
        "generate": start("generate", ray_head, folder, f"shots=[{shot}]"),
    }
    try:
        deadline = time.monotonic() + 90
        while not both_wait(ray_head):
            assert time.monotonic() < deadline
            assert all(job.poll() is None for job in jobs.values()), [job.communicate() for job in jobs.values()]
            time.sleep(0.2)
        stopped = time.monotonic()
        for job in jobs.values():
            job.send_signal(signal.SIGINT)
        told = {name: job.communicate(timeout=60)[0].splitlines() for name, job in jobs.items()}
        took = time.monotonic() - stopped
    finally:
        remove_placement_group(taken)
        for job in jobs.values():
            job.kill()
    for name, job in jobs.items():
        assert job.returncode == 130, told[name]
        assert told[name][-1] == "stopped; the same command goes on from what is stored"
        assert result(folder, name)["status"] == "cut"
    assert took < 10
