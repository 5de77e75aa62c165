"""The sweep deletes what is over and what nobody needs, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from serve.config import ServeConfig
from serve.dispatch import open_store
from serve.jobs import JobStore, NewJob
from serve.sweep import ORPHAN_S, TOLD_S, Sweeper
from serve.tables import record_table


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


def moved(config: ServeConfig, folder: Path) -> ServeConfig:
    """The same storage with a table elsewhere."""
    folder.mkdir(exist_ok=True)
    return config.model_copy(update={"database": f"sqlite:///{folder}/jobs.db"})


def files(config: ServeConfig) -> list[str]:
    folders = (config.inputs(), config.results(), config.states())
    return sorted(path.name for folder in folders for path in folder.iterdir())


def fill(config: ServeConfig, store: JobStore, name: str) -> list[str]:
    """A finished job and a queued one that had a lease, their files older than an orphan may get; returns the files."""
    completed(store, config, f"{name}_done")
    store.create(NewJob(f"{name}_queued", "alice", {}, None, f"{name}_queued.png", 1.0))
    (config.inputs() / f"{name}_queued.png").write_bytes(b"x")
    (config.states() / f"{name}_queued.safetensors").write_bytes(b"x")
    for folder in (config.inputs(), config.results(), config.states()):
        for path in folder.iterdir():
            make_old(path)
    return sorted([f"{name}_done.png", f"{name}_done.1.mp4", f"{name}_queued.png", f"{name}_queued.safetensors"])


def test_two_tables_over_one_storage_delete_nothing_of_each_other(
    config: ServeConfig, store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = moved(config, tmp_path / "b")
    others = open_store(other)
    assert f"{config.home()}/tables/{store.table_id}.json" in caplog.text
    of_both = sorted(fill(config, store, "a") + fill(other, others, "b"))
    assert (Sweeper(store, config).sweep(), Sweeper(others, other).sweep()) == (0, 0)
    assert files(config) == of_both
    store.clock = lambda: time.time() + config.ttl_s + 1
    assert Sweeper(store, config).sweep() == 1, "what is over goes"
    assert files(config) == [name for name in of_both if not name.startswith("a_done")]


def test_a_service_that_moved_to_another_database_deletes_what_is_left_once_it_is_told_to(
    config: ServeConfig, store: JobStore, tmp_path: Path
) -> None:
    left = fill(config, store, "a")
    other = moved(config, tmp_path / "b")
    others = open_store(other)
    assert Sweeper(others, other).sweep() == 0
    assert files(other) == left
    store.close()
    (config.home() / "jobs.db").unlink()
    assert Sweeper(others, other).sweep() == 0
    assert files(other) == left, "its record stands"
    (config.home() / "tables" / f"{store.table_id}.json").unlink()
    Sweeper(others, other).sweep()
    assert files(other) == []


def test_a_table_that_is_moved_with_its_database_stays_the_same(
    config: ServeConfig, store: JobStore, tmp_path: Path
) -> None:
    left = fill(config, store, "a")
    store.close()
    there = moved(config, tmp_path / "b")
    shutil.move(config.home() / "jobs.db", tmp_path / "b" / "jobs.db")
    opened = open_store(there)
    assert opened.table_id == store.table_id
    orphan = config.inputs() / "c.png"
    orphan.write_bytes(b"x")
    make_old(orphan)
    assert Sweeper(opened, there).sweep() == 0
    assert files(there) == left


@pytest.mark.parametrize("default", [True, False])
def test_files_of_a_table_that_was_never_recorded_stay(config: ServeConfig, tmp_path: Path, default: bool) -> None:
    before = config if default else moved(config, tmp_path / "a")
    store = open_store(before)
    left = fill(before, store, "a")
    shutil.rmtree(config.home() / "tables")  # as a version without records left it
    after = moved(config, tmp_path / "b")
    opened = open_store(after)
    assert Sweeper(opened, after).sweep() == 0
    assert files(after) == left


def test_a_record_shows_no_credentials(config: ServeConfig, store: JobStore) -> None:
    secret = "postgresql://cinesynth:secret@db.example/jobs?password=secret"
    shutil.rmtree(config.home() / "tables")
    record_table(config.model_copy(update={"database": secret}), store)
    (record,) = (config.home() / "tables").iterdir()
    assert json.loads(record.read_bytes())["database"] == "postgresql://db.example/jobs"
