from __future__ import annotations

import os

import pytest

from serve.config import ServeConfig
from serve.dispatch import demand, sweep
from serve.jobs import Backlog, JobStore, NewJob


@pytest.mark.parametrize(
    ("queued", "running", "seconds", "engines"),
    [
        (0, 0, 0.0, 0),
        (1, 0, 0.5, 1),
        (1, 0, 10.0, 1),
        (5, 0, 25.0, 3),
        (5, 0, 1000.0, 4),
        (1, 1, 300.0, 2),
        (2, 0, 1000.0, 2),
        (0, 1, 0.0, 1),
    ],
)
def test_demand_is_the_backlog_over_the_target_wait(queued: int, running: int, seconds: float, engines: int) -> None:
    backlog = Backlog(queued, running, seconds, frozenset())
    assert demand(backlog, target_wait_s=10.0, max_replicas=4) == engines


def test_the_sweep_deletes_what_is_over_and_orphans_only(config: ServeConfig, store: JobStore) -> None:
    now = [1_000_000.0]
    store.clock = lambda: now[0]
    for name in ("video_done", "video_running"):
        store.create(NewJob(name, "alice", {}, None, f"{name}.png", 1.0))
        (config.inputs() / f"{name}.png").write_bytes(b"x")
    lease = store.lease_next("engine")
    assert lease is not None
    (config.results() / "video_done.1.mp4").write_bytes(b"x")
    store.complete(lease.job.id, lease.token, "video_done.1.mp4", "00")
    orphans = [config.inputs() / "video_gone.png", config.results() / ".tmp-video_gone.1.mp4"]
    for path in [*orphans, config.inputs() / "video_running.png"]:
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    fresh = config.inputs() / "video_new.png"
    fresh.write_bytes(b"x")
    assert sweep(store, config) == 0
    assert store.get("video_done") is not None
    now[0] += config.ttl_s + 1
    assert sweep(store, config) == 1
    assert store.get("video_done") is None
    assert {p.name for p in config.inputs().iterdir()} == {"video_running.png", "video_new.png"}
    assert list(config.results().iterdir()) == []
