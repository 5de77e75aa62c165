"""Databases of earlier versions are opened with their queue; those of later ones are refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from cinesynth.errors import StorageError
from serve.database import metadata
from serve.jobs import JobStore, NewJob
from serve.migrations import MIGRATIONS

REPOSITORY = Path(__file__).resolve().parents[2]

VERSION_1 = """
CREATE TABLE serve_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
INSERT INTO serve_schema VALUES (1);
CREATE TABLE jobs (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id VARCHAR(64) NOT NULL,
    owner VARCHAR(80) NOT NULL,
    status VARCHAR(16) NOT NULL,
    request JSON NOT NULL,
    adapter VARCHAR(200),
    image VARCHAR(200) NOT NULL,
    work FLOAT NOT NULL,
    progress INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    passed_over INTEGER NOT NULL,
    token INTEGER NOT NULL,
    holder VARCHAR(80),
    lease_expires_at FLOAT,
    created_at FLOAT NOT NULL,
    started_at FLOAT,
    completed_at FLOAT,
    expires_at FLOAT,
    result VARCHAR(200),
    sha256 VARCHAR(64),
    error_code VARCHAR(32),
    error_message VARCHAR(2000),
    UNIQUE (id)
);
CREATE INDEX ix_jobs_status ON jobs (status);
INSERT INTO jobs VALUES
    (3, 'done', 'alice', 'completed', '{"n": 3}', NULL, 'done.png', 10, 100, 1, 0, 1, NULL, NULL,
     900, 1000, 1020, 99999, 'done.1.mp4', 'ff', NULL, NULL),
    (4, 'failed', 'alice', 'failed', '{}', NULL, 'failed.png', 10, 30, 3, 0, 3, NULL, NULL,
     901, 1030, 1040, 99999, NULL, NULL, 'timeout', 'no step; given up after 3 attempts'),
    (5, 'running', 'bob', 'in_progress', '{}', 'film@2', 'running.png', 10, 40, 2, 1, 2, 'call', 1090,
     902, 1050, NULL, NULL, NULL, NULL, NULL, NULL),
    (6, 'lost once', 'bob', 'queued', '{}', NULL, 'lost.png', 10, 0, 1, 0, 1, NULL, NULL,
     903, 1051, NULL, NULL, NULL, NULL, NULL, NULL),
    (8, 'fresh', 'alice', 'queued', '{"prompt": "näher"}', NULL, 'fresh.png', 20, 0, 0, 0, 0, NULL, NULL,
     904, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
"""
"""A database as cinesynth 0.1.0 left it."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    db = sqlite3.connect(path)
    db.executescript("PRAGMA journal_mode = WAL;" + VERSION_1)
    db.close()
    return path


def schema(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as db:
        return dict(db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def version(path: Path) -> list[tuple[int]]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT version FROM serve_schema").fetchall()


def test_an_upgrade_keeps_the_queue_and_the_videos(old: Path) -> None:
    jobs = JobStore(f"sqlite:///{old}", clock=lambda: 1060.0)
    assert version(old) == [(len(MIGRATIONS),)]
    page = jobs.page("alice", None, 10, newest_first=False)
    assert page is not None
    assert [(job.id, job.status, job.attempts, job.seconds) for job in page.jobs] == [
        ("done", "completed", 0, 20),
        ("failed", "failed", 3, 10),
        ("fresh", "queued", 0, 0),
    ]
    assert (page.jobs[0].result, page.jobs[0].request, page.jobs[0].expires_at) == ("done.1.mp4", {"n": 3}, 99999)
    running = jobs.get("running")
    assert running is not None
    assert (running.attempts, running.progress, running.adapter) == (1, 40, "film@2")
    # Their work was counted in another unit: nothing is predicted by it.
    assert jobs.backlog().seconds == pytest.approx(60 * (0.6 + 1 + 1))
    assert jobs.complete("running", 2, "running.2.mp4", "ee"), "the lease from before the upgrade holds"
    finished = jobs.get("running")
    assert finished is not None
    assert (finished.seconds, finished.started_at) == (10, 1050)
    for name, prompt in [("lost once", None), ("fresh", "näher")]:
        lease = jobs.lease_next("engine", "node")
        assert lease is not None
        assert (lease.job.id, lease.job.request.get("prompt")) == (name, prompt)
    jobs.create(NewJob("new", "alice", {}, None, "new.png", 1.0, idempotency_key="k"))
    place = jobs.place("new")
    assert place is not None
    assert place.position == 1


def test_a_new_database_and_an_upgraded_one_are_what_the_code_says(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    for path in (old, new):
        JobStore(f"sqlite:///{path}").close()
    declared = sa.create_engine("sqlite://")
    metadata.create_all(declared)
    wanted = sa.inspect(declared)
    for path in (old, new):
        found = sa.inspect(sa.create_engine(f"sqlite:///{path}"))
        columns = [
            {c["name"]: (str(c["type"]), c["nullable"], c["primary_key"]) for c in inspector.get_columns("jobs")}
            for inspector in (found, wanted)
        ]
        assert columns[0] == columns[1]
        indexes = [
            {i["name"]: (i["column_names"], i["unique"]) for i in inspector.get_indexes("jobs")}
            for inspector in (found, wanted)
        ]
        assert indexes[0] == indexes[1]
        assert "AUTOINCREMENT" in schema(path)["jobs"], "ids of deleted rows are not used again"


def test_a_table_has_an_id_of_its_own_that_it_keeps(old: Path, tmp_path: Path) -> None:
    upgraded, new = (JobStore(f"sqlite:///{path}").table_id for path in (old, tmp_path / "new.db"))
    assert upgraded != new
    assert JobStore(f"sqlite:///{old}").table_id == upgraded


def test_a_database_of_a_newer_version_is_refused_and_left_alone(old: Path) -> None:
    with sqlite3.connect(old) as db:
        db.execute("UPDATE serve_schema SET version = 99")
    before = schema(old)
    with pytest.raises(StorageError, match=r"version 99.*up to 3: run the newer cinesynth.*`database`"):
        JobStore(f"sqlite:///{old}")
    assert (schema(old), version(old)) == (before, [(99,)])


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE jobs (id INTEGER)")
    with pytest.raises(StorageError, match="cannot be opened"):
        JobStore(f"sqlite:///{path}")
    assert list(schema(path)) == ["jobs"]


def test_a_database_of_the_newest_version_is_opened_while_another_writes(old: Path) -> None:
    JobStore(f"sqlite:///{old}").close()
    writer = sqlite3.connect(old, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert JobStore(f"sqlite:///{old}").get("fresh") is not None
    finally:
        writer.close()


def test_a_new_database_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode")
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE something (n INTEGER)")
    release = threading.Timer(0.5, other.rollback)
    release.start()
    try:
        assert JobStore(f"sqlite:///{path}").ids() == set()
    finally:
        release.join()
        other.close()


OPENER = """
import sys, time
from serve import migrations
from serve.jobs import JobStore

def counted(number, migration):
    def run(db):
        with open(sys.argv[2], "a") as log:
            log.write(f"{number}\\n")
        time.sleep(0.3)  # the other process is at the door meanwhile
        migration(db)
    return run

migrations.MIGRATIONS = tuple(counted(*item) for item in enumerate(migrations.MIGRATIONS))
print("ready", flush=True)
sys.stdin.readline()
jobs = JobStore(sys.argv[1])
print(len(jobs.ids()), flush=True)
"""


@pytest.mark.parametrize(("exists", "migrated", "jobs"), [(True, [1, 2], 5), (False, [0, 1, 2], 0)])
def test_two_processes_that_open_at_once_migrate_once(
    old: Path, tmp_path: Path, exists: bool, migrated: list[int], jobs: int
) -> None:
    path, log = (old if exists else tmp_path / "new.db"), tmp_path / "log"
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, f"sqlite:///{path}", str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(2)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    assert [opener.communicate(timeout=60)[0] for opener in openers] == [f"{jobs}\n"] * 2
    assert [opener.returncode for opener in openers] == [0, 0]
    assert [int(line) for line in log.read_text().split()] == migrated
    assert version(path) == [(len(MIGRATIONS),)]


KILLED = """
import os, signal, sys
from serve import migrations
from serve.jobs import JobStore

last = migrations.MIGRATIONS[-1]
def half(db):
    last(db)
    db.exec_driver_sql("UPDATE jobs SET request = '" + "x" * 5_000_000 + "'")  # more than stays in memory
    os.kill(os.getpid(), signal.SIGKILL)

migrations.MIGRATIONS = (*migrations.MIGRATIONS[:-1], half)
JobStore(sys.argv[1])
"""


def test_a_migration_that_is_killed_half_way_leaves_the_old_version(old: Path) -> None:
    before = schema(old)
    killed = subprocess.run([sys.executable, "-c", KILLED, f"sqlite:///{old}"], cwd=REPOSITORY, timeout=60)
    assert killed.returncode == -9
    assert (schema(old), version(old)) == (before, [(1,)])
    assert len(JobStore(f"sqlite:///{old}").ids()) == 5, "the next one goes through"
    assert version(old) == [(len(MIGRATIONS),)]


def test_a_migration_that_fails_leaves_the_old_version(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema(old)

    def broken(db: sa.Connection) -> None:
        db.execute(sa.text("ALTER TABLE jobs ADD COLUMN more INTEGER"))
        db.execute(sa.text("ALTER TABLE nothing ADD COLUMN more INTEGER"))

    monkeypatch.setattr("serve.migrations.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(StorageError, match="nothing"):
        JobStore(f"sqlite:///{old}")
    assert (schema(old), version(old)) == (before, [(1,)])
