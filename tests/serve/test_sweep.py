"""The sweep deletes what is over and what nobody needs, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serve.config import ServeConfig
from serve.jobs import JobStore, NewJob
from serve.sweep import ORPHAN_S, TOLD_S, Sweeper


def test_the_sweep_deletes_what_is_over_and_orphans_only(config: ServeConfig, store: JobStore) -> None:
    now = [1_000_000.0]
    store.clock = lambda: now[0]
    for name in ("video_done", "video_running"):
        store.create(NewJob(name, "alice", {}, None, f"{name}.png", 1.0))
        (config.inputs() / f"{name}.png").write_bytes(b"x")
    lease = store.lease_next("engine")
    assert lease is not None
    for name in ("video_done.1.mp4", "video_done.1.mp4.thumbnail.webp", "video_done.1.mp4.spritesheet.jpg"):
        (config.results() / name).write_bytes(b"x")
    store.complete(lease.job.id, lease.token, "video_done.1.mp4", "00")
    orphans = [config.inputs() / "video_gone.png", config.results() / ".tmp-video_gone.1.mp4"]
    old, young = time.time() - ORPHAN_S - 1, time.time() - ORPHAN_S + 60
    for path in [*orphans, config.inputs() / "video_running.png"]:
        path.write_bytes(b"x")
        os.utime(path, (old, old))
    fresh = config.inputs() / "video_new.png"
    fresh.write_bytes(b"x")
    os.utime(fresh, (young, young))
    assert Sweeper(store, config).sweep() == 0
    assert store.get("video_done") is not None
    assert len(list(config.results().iterdir())) == 3
    now[0] += config.ttl_s + 1
    assert Sweeper(store, config).sweep() == 1
    assert store.get("video_done") is None
    assert {p.name for p in config.inputs().iterdir()} == {"video_running.png", "video_new.png"}
    assert list(config.results().iterdir()) == []


def test_states_stay_while_their_job_may_go_on(config: ServeConfig, store: JobStore) -> None:
    for name in ("done", "failed", "running", "deleted", "lost"):
        store.create(NewJob(name, "alice", {}, None, f"{name}.png", 1.0))
        lease = store.lease_next(name)
        assert lease is not None
        (config.states() / f"{name}.5f3a.safetensors").write_bytes(b"x")
        (config.states() / f"{name}.safetensors").write_bytes(b"x")
        if name == "done":
            store.complete(name, lease.token, "done.1.mp4", "00")
        elif name == "failed":
            store.fail(name, lease.token, "oom", "too big")
        elif name == "lost":
            store.release("lost", "crashed")
    store.delete("deleted", "alice")
    (config.states() / "never.safetensors").write_bytes(b"x")
    (config.states() / ".tmp-0123").write_bytes(b"is being written")
    (config.states() / ".tmp-4567").write_bytes(b"its writer died")
    died = time.time() - ORPHAN_S - 1
    os.utime(config.states() / ".tmp-4567", (died, died))
    assert Sweeper(store, config).sweep() == 0
    assert {p.name for p in config.states().iterdir()} == {
        *("running.safetensors", "running.5f3a.safetensors", "lost.safetensors", "lost.5f3a.safetensors"),
        ".tmp-0123",
    }


def completed(store: JobStore, config: ServeConfig, name: str) -> None:
    """A finished job with its first frame and its video."""
    store.create(NewJob(name, "alice", {}, None, f"{name}.png", 1.0))
    lease = store.lease_next("engine")
    assert lease is not None
    assert lease.job.id == name
    (config.inputs() / f"{name}.png").write_bytes(b"x")
    (config.results() / f"{name}.1.mp4").write_bytes(b"x")
    store.complete(name, lease.token, f"{name}.1.mp4", "00")


def make_old(path: Path) -> Path:
    old = time.time() - ORPHAN_S - 1
    os.utime(path, (old, old))
    return path


def test_what_cannot_be_deleted_keeps_nothing_else(
    config: ServeConfig, store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("video_a", "video_b"):
        completed(store, config, name)
    folder, of_a_job = config.results() / "by hand", config.results() / "video_b.1.mp4.d"
    for path in (folder, of_a_job):
        path.mkdir()
        make_old(path)
    store.clock = lambda: time.time() + config.ttl_s + 1
    sweeper, now = Sweeper(store, config), time.monotonic()
    assert sweeper.sweep() == 1
    assert store.ids() == {"video_b"}, "its file is still there"
    assert list(config.inputs().iterdir()) == []
    assert set(config.results().iterdir()) == {folder, of_a_job}
    assert sweeper.sweep() == 0
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == [
        f"{path} cannot be deleted (Is a directory); remove it yourself" for path in (folder, of_a_job)
    ]
    monkeypatch.setattr(time, "monotonic", lambda: now + TOLD_S + 60)
    of_a_job.rmdir()
    assert sweeper.sweep() == 1, "of video_b"
    assert len(caplog.records) == 3, "the folder is told again after a while"


def test_a_frame_whose_job_is_late_stays_however_soon_videos_go(config: ServeConfig, store: JobStore) -> None:
    soon = config.model_copy(update={"ttl_s": 2.0})
    frame = config.inputs() / "video_late.png"
    frame.write_bytes(b"x")
    waiting = time.time() - 25  # for the write lock of the table
    os.utime(frame, (waiting, waiting))
    assert Sweeper(store, soon).sweep() == 0
    assert frame.exists()
