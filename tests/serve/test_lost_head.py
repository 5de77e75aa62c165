"""The head is lost with all that runs there: the service on another one goes on with the table of videos."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cinesynth.settings import parse_config
from cinesynth.storage import sha256_file
from cluster.local import LocalHead
from cluster.local_head import marked_processes
from serve.auth import create_key
from serve.config import ServeConfig
from serve.run import _connect, deploy
from tests.conftest import REPOSITORY
from tests.serve.service import Service, drawing_groups, small_service, until

pytestmark = [pytest.mark.slow, pytest.mark.own_ray]

LEASE_S = 5


def lose(head: LocalHead) -> None:
    """End all processes of a head's host at once."""
    processes = {*marked_processes(head.folder), *psutil.Process(head.pid).children(recursive=True)}
    for process in (psutil.Process(head.pid), *processes):
        process.kill()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Callable[[], tuple[LocalHead, Service]]]:
    """Starts a head and deploys one and the same service on it."""
    gate = tmp_path / "gate"
    gate.mkdir()
    values = {**small_service(tmp_path, group={"ranks": 1, "cpus_per_rank": 0.5}), "lease_s": LEASE_S}
    config = parse_config(ServeConfig, values)
    headers = {"Authorization": f"Bearer {create_key(config.keys_path(), 'alice')}"}
    heads: list[LocalHead] = []

    def start() -> tuple[LocalHead, Service]:
        heads.append(LocalHead(num_cpus=2, log=tmp_path / "head.log"))
        heads[-1].start()
        heads[-1].wait_until_ready()
        command = [sys.executable, "-m", __name__, heads[-1].address, str(gate), json.dumps(values)]
        told = subprocess.run(
            command, cwd=REPOSITORY, env=heads[-1].environment, capture_output=True, text=True, timeout=150
        )
        assert told.returncode == 0, told.stderr
        return heads[-1], Service(config, drawing_groups(gate), client, gate)

    with httpx.Client(base_url=f"http://127.0.0.1:{config.port}", headers=headers, timeout=30) as client:
        try:
            yield start
        finally:
            for head in heads:
                head.stop()


def test_a_service_on_another_head_ends_the_videos_of_the_one_that_was_lost(
    deployed: Callable[[], tuple[LocalHead, Service]], png: bytes
) -> None:
    head, service = deployed()
    running = service.submit(png)
    until(lambda: service.state_kept(running), "a kept state")
    queued = service.submit(png)
    until(lambda: service.job(running).progress, "its progress")
    lose(head)
    with pytest.raises(httpx.TransportError):
        service.client.get("/healthz")
    assert [service.job(video).status for video in (running, queued)] == ["in_progress", "queued"]

    _, service = deployed()
    service.open()
    for video in (running, queued):
        done = service.finished(video)
        assert (done.status, done.attempts) == ("completed", 0), "nobody knows what befell its engine"
        assert done.sha256 == sha256_file(service.config.results() / str(done.result))
        assert service.client.get(f"/v1/videos/{video}/content").content[4:8] == b"ftyp"
    assert sorted(service.began()) == [0, 2], "the one that ran went on from its state"
    assert len(list(service.config.results().iterdir())) == 2
    assert list(service.config.states().iterdir()) == []


def main(address: str, gate: str, values: str) -> None:
    """Deploy, as `python -m serve.run` does, with engines that draw."""
    _connect(address)
    fields: dict[str, Any] = json.loads(values)
    deploy(parse_config(ServeConfig, fields), drawing_groups(Path(gate)))


if __name__ == "__main__":
    main(*sys.argv[1:])
