from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from cinesynth.errors import StorageError
from serve.jobs import MAX_PASSED_OVER, JobStore, Lease, NewJob, QueueFull

REPOSITORY = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(tmp_path: Path, clock: Clock) -> JobStore:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    return JobStore(url, lease_s=10, max_attempts=3, queue_cap=20, ttl_s=100, assumed_job_s=60, clock=clock)


def add(jobs: JobStore, job_id: str, adapter: str | None = None, work: float = 1.0) -> None:
    created = jobs.create(NewJob(job_id, "alice", {"n": job_id}, adapter, f"{job_id}.png", work))
    assert not isinstance(created, QueueFull)


def lease(jobs: JobStore, holder: str = "engine", loaded: tuple[str | None, ...] = (None,)) -> Lease:
    taken = jobs.lease_next(holder, loaded)
    assert taken is not None
    return taken


def test_a_job_goes_from_queued_to_completed(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    created = jobs.get("a")
    assert created is not None
    assert (created.status, created.progress, created.created_at) == ("queued", 0, clock.now)
    taken = lease(jobs)
    assert (taken.job.status, taken.job.attempts, taken.job.request) == ("in_progress", 1, {"n": "a"})
    assert taken.expires_at == clock.now + 10
    clock.now += 4
    assert jobs.heartbeat("a", taken.token, 40)
    assert jobs.get("a").progress == 40  # type: ignore[union-attr]
    clock.now += 2
    assert jobs.complete("a", taken.token, "a.mp4", "ff" * 32)
    done = jobs.get("a")
    assert done is not None
    assert (done.status, done.progress, done.result, done.sha256) == ("completed", 100, "a.mp4", "ff" * 32)
    assert (done.completed_at, done.expires_at) == (clock.now, clock.now + 100)


def test_whoever_waits_for_work_is_told_of_a_queued_job_only(tmp_path: Path) -> None:
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}", queue_cap=1)
    told: list[int] = []
    jobs.on_queued = lambda: told.append(jobs.backlog().queued)
    add(jobs, "a")
    assert isinstance(jobs.create(NewJob("b", "alice", {}, None, "b.png", 1.0)), QueueFull)
    assert told == [1], "once, when others can see the job"


def test_jobs_are_leased_in_order_and_once(jobs: JobStore) -> None:
    for name in "abc":
        add(jobs, name)
    assert [lease(jobs).job.id for _ in "abc"] == ["a", "b", "c"]
    assert jobs.lease_next("engine") is None


def test_a_stale_engine_can_change_nothing(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    old = lease(jobs, "old")
    clock.now += 11
    assert jobs.expire() == ["old"]
    new = lease(jobs, "new")
    assert new.token > old.token
    before = jobs.get("a")
    assert not jobs.heartbeat("a", old.token, 90)
    assert not jobs.complete("a", old.token, "old.mp4", "00")
    assert not jobs.fail("a", old.token, "oom", "late")
    assert not jobs.give_up("a", old.token, "timeout", "late")
    assert jobs.get("a") == before
    assert jobs.complete("a", new.token, "new.mp4", "11")
    assert not jobs.complete("a", new.token, "again.mp4", "22"), "a finished job is final"
    assert jobs.complete("a", new.token, "new.mp4", "11"), "an engine whose call was not answered asks again"
    assert not jobs.complete("a", old.token, "new.mp4", "11")
    assert jobs.get("a").result == "new.mp4"  # type: ignore[union-attr]


def test_a_heartbeat_renews_the_lease(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    taken = lease(jobs)
    for _ in range(5):
        clock.now += 9
        assert jobs.heartbeat("a", taken.token, 10)
        assert jobs.expire() == []


def test_the_third_lost_lease_fails_the_job_and_earlier_ones_keep_its_place(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    add(jobs, "b")
    for attempt in (1, 2, 3):
        taken = lease(jobs)
        assert (taken.job.id, taken.job.attempts) == ("a", attempt)
        clock.now += 11
        jobs.expire()
    failed = jobs.get("a")
    assert failed is not None
    assert (failed.status, failed.error_code) == ("failed", "rank_lost")
    assert "3 attempts" in (failed.error_message or "")
    assert lease(jobs).job.id == "b"


def test_giving_up_an_attempt_queues_again_with_its_own_code_at_the_end(jobs: JobStore) -> None:
    add(jobs, "a")
    for _ in range(3):
        assert jobs.give_up("a", lease(jobs).token, "timeout", "no step")
    job = jobs.get("a")
    assert job is not None
    assert (job.status, job.error_code) == ("failed", "timeout")


def test_an_engine_known_to_be_gone_loses_its_lease_at_once(jobs: JobStore) -> None:
    add(jobs, "a")
    add(jobs, "b")
    lease(jobs, "dead")
    lease(jobs, "alive")
    assert jobs.release("dead", "killed") == ["dead"]
    assert [jobs.get(i).status for i in "ab"] == ["queued", "in_progress"]  # type: ignore[union-attr]


def test_a_failure_is_final_and_typed(jobs: JobStore) -> None:
    add(jobs, "a")
    assert jobs.fail("a", lease(jobs).token, "oom", "too big")
    job = jobs.get("a")
    assert job is not None
    assert (job.status, job.error_code, job.error_message) == ("failed", "oom", "too big")
    assert jobs.lease_next("engine") is None


def test_a_loaded_adapter_goes_first_among_the_oldest_few_only(jobs: JobStore) -> None:
    for name, adapter in [("a", "x@1"), ("b", None), ("c", "y@1"), ("d", "x@1"), ("e", "z@1")]:
        add(jobs, name, adapter)
    assert lease(jobs, loaded=("z@1",)).job.id == "a", "e is not among the oldest four"
    assert lease(jobs, loaded=("y@1",)).job.id == "c"
    assert lease(jobs, loaded=(None,)).job.id == "b"


def test_a_job_gives_way_a_bounded_number_of_times(jobs: JobStore) -> None:
    add(jobs, "patient", "rare@1")
    order = []
    for i in range(MAX_PASSED_OVER + 1):
        add(jobs, f"popular-{i}", "popular@1")
        order.append(lease(jobs, loaded=("popular@1",)).job.id)
    assert order.index("patient") == MAX_PASSED_OVER


def test_the_queue_has_a_cap_and_says_when_to_come_back(tmp_path: Path) -> None:
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}", queue_cap=2, assumed_job_s=42)
    add(jobs, "a")
    add(jobs, "b")
    refused = jobs.create(NewJob("c", "alice", {}, None, "c.png", 1.0))
    assert refused == QueueFull(retry_after_s=42)
    assert jobs.get("c") is None
    lease(jobs)
    add(jobs, "c")


def test_the_backlog_is_predicted_from_completed_jobs(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a", work=10)
    add(jobs, "b", work=20)
    add(jobs, "c", work=40)
    assert jobs.backlog().seconds == 180, "assumed until one is measured"
    first = lease(jobs)
    clock.now += 5
    jobs.complete("a", first.token, "a.mp4", "00")  # 0.5 s per unit
    second = lease(jobs, "other")
    jobs.heartbeat("b", second.token, 50)
    backlog = jobs.backlog()
    assert (backlog.queued, backlog.running, backlog.holders) == (1, 1, frozenset({"other"}))
    assert backlog.seconds == pytest.approx(0.5 * 20 * 0.5 + 0.5 * 40)


def test_finished_jobs_expire_and_running_ones_do_not(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    add(jobs, "b")
    jobs.complete("a", lease(jobs).token, "a.mp4", "00")
    lease(jobs)
    clock.now += 101
    assert [job.id for job in jobs.expired()] == ["a"]
    jobs.forget(["a", "b"])
    assert jobs.get("a") is None
    assert jobs.get("b") is not None


def test_state_survives_reopening(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a folder with spaces' / 'jobs.db'}"
    (tmp_path / "a folder with spaces").mkdir()
    first = JobStore(url)
    add(first, "a")
    token = lease(first).token
    first.close()
    assert JobStore(url).complete("a", token, "a.mp4", "00")


def test_another_schema_version_and_a_bad_url_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    jobs = JobStore(url)
    with jobs._engine.begin() as db:
        db.execute(sa.text("UPDATE serve_schema SET version = 99"))
    with pytest.raises(StorageError, match="99"):
        JobStore(url)
    with pytest.raises(StorageError, match="cannot be opened"):
        JobStore(f"sqlite:///{tmp_path / 'missing' / 'jobs.db'}")
    with pytest.raises(StorageError, match="cannot be opened") as refused:
        JobStore("postgresql+nodriver://user:secret@host/db")
    assert "secret" not in str(refused.value)


LEASER = """
import sys
from serve.jobs import JobStore
jobs = JobStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(30):
    lease = jobs.lease_next("engine", [None])
    print(lease.job.id, flush=True)
"""


def test_two_processes_never_lease_one_job_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    jobs = JobStore(url)
    for i in range(60):
        add(jobs, f"job-{i}")
    engines = [
        subprocess.Popen(
            [sys.executable, "-c", LEASER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(2)
    ]
    for engine in engines:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "ready\n"
    for engine in engines:
        assert engine.stdin is not None
        engine.stdin.write("go\n")
        engine.stdin.flush()
    leased = [engine.communicate(timeout=60)[0].split() for engine in engines]
    assert [engine.returncode for engine in engines] == [0, 0]
    assert sorted(leased[0] + leased[1]) == sorted(f"job-{i}" for i in range(60))


def test_leases_of_a_table_that_was_away_are_renewed(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    taken = lease(jobs)
    clock.now += 60  # nobody could renew it
    jobs.extend()
    assert jobs.expire() == []
    assert jobs.complete("a", taken.token, "a.mp4", "00")


def test_reads_wait_for_no_writer(jobs: JobStore) -> None:
    add(jobs, "a")
    with jobs._engine.begin() as db:  # holds the write lock
        db.execute(sa.text("UPDATE jobs SET progress = 1"))
        started = time.monotonic()
        assert jobs.get("a") is not None
        assert jobs.backlog().queued == 1
        assert jobs.expired() == []
        assert time.monotonic() - started < 5
