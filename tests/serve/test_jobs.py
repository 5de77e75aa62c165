from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cinesynth.errors import StorageError
from serve.jobs import MAX_PASSED_OVER, Job, JobStore, KeyReused, Lease, NewJob, Observer, Page, Place, QueueFull
from serve.records import DatabaseFull, ErrorCode, ServedModel

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
    return JobStore(
        url, lease_s=10, max_attempts=3, max_leases=10, queue_cap=20, ttl_s=100, assumed_job_s=60, clock=clock
    )


def new(job_id: str, adapter: str | None = None, work: float = 1.0, owner: str = "alice", **values: Any) -> NewJob:
    return NewJob(job_id, owner, {"n": job_id}, adapter, f"{job_id}.png", work, **values)


def add(jobs: JobStore, job_id: str, adapter: str | None = None, work: float = 1.0, **values: Any) -> None:
    assert isinstance(jobs.create(new(job_id, adapter, work, **values)), Job)


def add_all(jobs: JobStore, names: Iterable[str]) -> None:
    for name in names:
        add(jobs, name)


def get(jobs: JobStore, job_id: str = "a") -> Job:
    job = jobs.get(job_id)
    assert job is not None
    return job


def lease(jobs: JobStore, holder: str = "engine", loaded: tuple[str | None, ...] = (None,), node: str = "n") -> Lease:
    taken = jobs.lease_next(holder, node, loaded)
    assert taken is not None
    return taken


def expire(jobs: JobStore, own: bool = True) -> list[str]:
    """Take back the leases that ran out, on whichever nodes."""
    return [holder for node in jobs.silent_nodes() for holder in jobs.expire(node, own)]


def test_a_job_goes_from_queued_to_completed(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    created = jobs.get("a")
    assert created is not None
    assert (created.status, created.progress, created.created_at) == ("queued", 0, clock.now)
    taken = lease(jobs)
    assert (taken.job.status, taken.job.attempts, taken.job.request) == ("in_progress", 0, {"n": "a"})
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
    assert expire(jobs) == ["old"]
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
        assert expire(jobs) == []


def test_the_third_loss_of_its_own_fails_the_job_and_earlier_ones_keep_its_place(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    add(jobs, "b")
    for attempt in (1, 2, 3):
        taken = lease(jobs)
        assert (taken.job.id, taken.job.attempts) == ("a", attempt - 1)
        clock.now += 11
        expire(jobs)
    failed = jobs.get("a")
    assert failed is not None
    assert (failed.status, failed.error_code, failed.attempts) == ("failed", "rank_lost", 3)
    assert failed.error_message == "no sign of life from the engine for 10 s; given up after 3 attempts"
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


def test_what_becomes_of_jobs_is_told_once_each(jobs: JobStore, clock: Clock) -> None:
    told: list[tuple[object, ...]] = []

    class Noted(Observer):
        def leased(self, job: Job, waited_s: float | None) -> None:
            told.append(("leased", job.id, waited_s))

        def completed(self, job: Job) -> None:
            told.append(("completed", job.id, job.seconds))

        def failed(self, code: ErrorCode) -> None:
            told.append(("failed", code))

        def lost(self, code: ErrorCode) -> None:
            told.append(("lost", code))

    jobs.observer = Noted()
    assert jobs.oldest_wait() == 0
    add(jobs, "a")
    clock.now += 7
    add(jobs, "b")
    assert jobs.oldest_wait() == 7
    taken = lease(jobs)
    assert jobs.oldest_wait() == 0
    assert jobs.give_up("a", taken.token, "timeout", "no step")
    taken = lease(jobs)
    clock.now += 3
    assert jobs.complete("a", taken.token, "a.mp4", "00")
    assert jobs.complete("a", taken.token, "a.mp4", "00")  # it was told before
    assert not jobs.fail("a", taken.token, "oom", "too late")
    assert jobs.fail("b", lease(jobs).token, "oom", "too big")
    assert told == [
        ("leased", "a", 7.0),
        ("lost", "timeout"),
        ("leased", "a", None),
        ("completed", "a", 3.0),
        ("leased", "b", 3.0),
        ("failed", "oom"),
    ]
    add(jobs, "c")
    told.clear()
    for _ in range(3):
        jobs.give_up("c", lease(jobs).token, "rank_lost", "killed")
    assert [event for event in told if event[0] != "leased"] == [("lost", "rank_lost")] * 3 + [("failed", "rank_lost")]


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
    assert jobs.expired() == {"a"}
    assert (jobs.ids(), jobs.unfinished_ids()) == ({"a", "b"}, {"b"})
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


def test_a_bad_url_is_refused(tmp_path: Path) -> None:
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
    lease = jobs.lease_next("engine", "node", [None])
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
    assert expire(jobs) == []
    assert jobs.complete("a", taken.token, "a.mp4", "00")


def test_reads_wait_for_no_writer(jobs: JobStore) -> None:
    add(jobs, "a")
    with jobs._engine.begin() as db:  # holds the write lock
        db.execute(sa.text("UPDATE jobs SET progress = 1"))
        started = time.monotonic()
        assert jobs.get("a") is not None
        assert jobs.backlog().queued == 1
        assert jobs.expired() == set()
        assert jobs.find("alice", "key") is None
        assert jobs.page("alice", None, 10, True) is not None
        assert jobs.place("a") == Place(1, 60)
        assert jobs.silent_nodes() == set()
        assert time.monotonic() - started < 5


# --- whose fault a lost lease was ----------------------------------------------------------------------------


def test_a_lost_node_and_a_drain_cost_no_attempt(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    tokens = []
    for _ in range(2):
        tokens.append(lease(jobs).token)
        assert jobs.release("engine", "its node was lost", own=False) == ["engine"]
        tokens.append(lease(jobs).token)
        assert jobs.give_up("a", tokens[-1], "internal", "taken away", own=False)
        tokens.append(lease(jobs).token)
        clock.now += 11
        assert expire(jobs, own=False) == ["engine"]
    assert (get(jobs).status, get(jobs).attempts) == ("queued", 0)
    assert tokens == [1, 2, 3, 4, 5, 6], "each lease has its own"
    tokens.append(lease(jobs).token)
    jobs.release("engine", "crashed", own=True)
    assert (get(jobs).status, get(jobs).attempts) == ("queued", 1)


def test_only_leases_of_the_judged_node_are_taken_back(jobs: JobStore, clock: Clock) -> None:
    for name, node in [("a", "lost"), ("b", "living"), ("c", None)]:
        add(jobs, name)
        assert jobs.lease_next(f"engine of {name}", node) is not None
    assert jobs.silent_nodes() == set()
    clock.now += 11
    assert jobs.silent_nodes() == {"lost", "living", None}
    assert jobs.expire("lost", own=False) == ["engine of a"]
    assert jobs.expire(None, own=True) == ["engine of c"]
    assert [(get(jobs, i).status, get(jobs, i).attempts) for i in "abc"] == [
        ("queued", 0),
        ("in_progress", 0),
        ("queued", 1),
    ]


def test_a_job_that_no_engine_can_keep_fails_after_ten_leases(jobs: JobStore) -> None:
    add(jobs, "a")
    for i in range(10):
        assert get(jobs).status == "queued"
        assert jobs.give_up("a", lease(jobs).token, "rank_lost", f"loss {i + 1}", own=i in (2, 5))
    failed = get(jobs)
    assert (failed.status, failed.error_code, failed.attempts) == ("failed", "rank_lost", 2)
    assert failed.error_message == "loss 10; given up after 10 engines had begun it, of which 2 failed by themselves"


def test_the_end_of_a_long_reason_is_not_what_is_cut(jobs: JobStore) -> None:
    jobs.max_attempts = 1
    add(jobs, "a")
    jobs.give_up("a", lease(jobs).token, "internal", "x" * 5000)
    message = get(jobs).error_message or ""
    assert message.endswith("; given up after 1 attempts")
    assert len(message) <= 2000


def test_progress_never_goes_back_and_the_rest_is_that_of_this_attempt(jobs: JobStore) -> None:
    add(jobs, "a")
    first = lease(jobs)
    jobs.heartbeat("a", first.token, 70)
    jobs.heartbeat("a", first.token, 60)  # was overtaken
    assert (get(jobs).progress, jobs.backlog().seconds) == (70, pytest.approx(60 * 0.3))
    jobs.give_up("a", first.token, "internal", "broken")
    assert (get(jobs).progress, jobs.backlog().seconds) == (70, 60)
    second = lease(jobs)
    assert (second.job.progress, jobs.backlog().seconds) == (70, 60)
    jobs.heartbeat("a", second.token, 20)
    assert (get(jobs).progress, jobs.backlog().seconds) == (70, pytest.approx(60 * 0.8))
    jobs.heartbeat("a", second.token, 90)
    assert get(jobs).progress == 90
    jobs.fail("a", second.token, "oom", "too big")
    assert get(jobs).progress == 90


def test_the_first_start_stays_and_seconds_are_summed_over_attempts(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    clock.now += 5
    started = clock.now
    taken = lease(jobs)
    clock.now += 3
    jobs.give_up("a", taken.token, "internal", "taken away", own=False)
    clock.now += 100  # nobody works on it
    taken = lease(jobs)
    assert (get(jobs).started_at, get(jobs).seconds) == (started, 3)
    clock.now += 4
    jobs.complete("a", taken.token, "a.mp4", "00")
    assert (get(jobs).started_at, get(jobs).seconds) == (started, 7)
    assert jobs.complete("a", taken.token, "a.mp4", "00")
    assert get(jobs).seconds == 7, "told twice, counted once"


def test_a_clock_that_was_set_back_takes_no_seconds_off(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a")
    taken = lease(jobs)
    clock.now -= 3600
    jobs.complete("a", taken.token, "a.mp4", "00")
    assert get(jobs).seconds == 0


def test_the_rate_is_that_of_jobs_without_a_failed_attempt(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "drained", work=10)
    for seconds in (6, 4):  # the second engine goes on from the first one's state
        taken = lease(jobs)
        clock.now += seconds
        if seconds == 6:
            jobs.give_up("drained", taken.token, "internal", "taken away", own=False)
    jobs.complete("drained", taken.token, "a.mp4", "00")
    add(jobs, "hung", work=10)
    taken = lease(jobs)
    clock.now += 600
    jobs.give_up("hung", taken.token, "timeout", "no step")
    taken = lease(jobs)
    clock.now += 30
    jobs.complete("hung", taken.token, "b.mp4", "00")
    add(jobs, "next", work=5)
    assert jobs.backlog().seconds == pytest.approx(5 * (6 + 4) / 10)


# --- what clients ask for ------------------------------------------------------------------------------------


def test_a_request_that_comes_again_gets_its_job_though_the_queue_is_full(tmp_path: Path) -> None:
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}", queue_cap=1)
    told: list[str] = []
    jobs.on_queued = lambda: told.append("queued")
    first = jobs.create(new("a", idempotency_key="k", body_sha256="11"))
    assert isinstance(first, Job)
    assert jobs.create(new("b", idempotency_key="k", body_sha256="11")) == first
    assert jobs.create(new("b", idempotency_key="k", body_sha256="22")) == KeyReused("a")
    assert isinstance(jobs.create(new("b", idempotency_key="other", body_sha256="11")), QueueFull)
    assert jobs.find("alice", "k") == first
    assert (jobs.find("bob", "k"), jobs.find("alice", "other")) == (None, None)
    assert (jobs.ids(), told) == ({"a"}, ["queued"])


def test_a_key_is_its_owners_and_ends_with_its_job(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "a", idempotency_key="k", body_sha256="11")
    add(jobs, "b", owner="bob", idempotency_key="k", body_sha256="22")
    add(jobs, "c")
    add(jobs, "d")  # without a key there is no limit
    jobs.complete("a", lease(jobs).token, "a.mp4", "00")
    assert jobs.create(new("e", idempotency_key="k", body_sha256="11")) == get(jobs, "a"), "finished, and still kept"
    clock.now += 101
    jobs.forget(jobs.expired())
    add(jobs, "e", idempotency_key="k", body_sha256="33")
    assert jobs.delete("e", "alice") is not None
    add(jobs, "f", idempotency_key="k", body_sha256="44")
    assert jobs.find("alice", "k") == get(jobs, "f")


def test_one_request_sent_twice_at_once_makes_one_job(tmp_path: Path) -> None:
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}")
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: jobs.create(new(f"job-{i}", idempotency_key="k")), range(16)))
    assert {job.id for job in made if isinstance(job, Job)} == jobs.ids()
    assert len(jobs.ids()) == 1


def names(page: Page | None) -> tuple[list[str], bool]:
    assert page is not None
    return [job.id for job in page.jobs], page.has_more


def test_pages_go_through_an_owners_jobs_in_both_orders(jobs: JobStore) -> None:
    for name in "abcde":
        add(jobs, name)
        add(jobs, f"bobs-{name}", owner="bob")
    jobs.complete("a", lease(jobs).token, "a.mp4", "00")
    assert names(jobs.page("alice", None, 2, True)) == (["e", "d"], True)
    assert names(jobs.page("alice", "d", 2, True)) == (["c", "b"], True)
    assert names(jobs.page("alice", "b", 2, True)) == (["a"], False)
    assert names(jobs.page("alice", "c", 2, True)) == (["b", "a"], False), "a whole page that is the last"
    assert names(jobs.page("alice", "a", 2, True)) == ([], False)
    assert names(jobs.page("alice", None, 3, False)) == (["a", "b", "c"], True)
    assert names(jobs.page("alice", "c", 3, False)) == (["d", "e"], False)
    assert names(jobs.page("carol", None, 3, False)) == ([], False)
    assert jobs.page("alice", "bobs-a", 3, False) is None
    assert jobs.page("alice", "unknown", 3, False) is None


def test_a_deleted_job_is_gone_and_its_engine_stops(jobs: JobStore) -> None:
    add(jobs, "a")
    add(jobs, "b")
    taken = lease(jobs)
    assert jobs.delete("a", "bob") is None
    assert jobs.delete("x", "alice") is None
    running = get(jobs, "a")
    assert jobs.delete("a", "alice") == running
    assert jobs.get("a") is None
    assert not jobs.heartbeat("a", taken.token, 10)
    assert not jobs.complete("a", taken.token, "a.mp4", "00")
    assert not jobs.give_up("a", taken.token, "timeout", "late")
    assert jobs.delete("b", "alice") is not None
    assert jobs.delete("b", "alice") is None
    assert jobs.lease_next("engine") is None


def test_a_remix_remembers_its_parent_when_that_is_gone(jobs: JobStore) -> None:
    add(jobs, "a")
    add(jobs, "b", remixed_from="a")
    assert jobs.delete("a", "alice") is not None
    assert get(jobs, "b").remixed_from == "a"


def test_a_place_is_the_position_and_the_seconds_until_it_is_completed(jobs: JobStore, clock: Clock) -> None:
    add(jobs, "measured", work=10)
    assert jobs.place("measured") == Place(1, 60), "assumed until one is measured"
    taken = lease(jobs)
    clock.now += 10
    jobs.complete("measured", taken.token, "m.mp4", "00")  # 1 s per unit of work
    for name, work in [("a", 40), ("b", 20), ("c", 30), ("d", 10)]:
        add(jobs, name, work=work)
    assert jobs.place("d") == Place(4, 100), "one engine is coming"
    lease(jobs, "first")
    second = lease(jobs, "second")
    jobs.heartbeat("b", second.token, 50)
    # The first engine is free in 40 s; the second in 10 s, and then takes c.
    assert jobs.place("a") == Place(0, pytest.approx(40))
    assert jobs.place("b") == Place(0, pytest.approx(10))
    assert jobs.place("c") == Place(1, pytest.approx(10 + 30))
    assert jobs.place("d") == Place(2, pytest.approx(40 + 10))
    assert jobs.backlog().seconds == pytest.approx(40 + 10 + 30 + 10)
    assert jobs.place("measured") is None
    assert jobs.place("unknown") is None


def test_no_hot_query_reads_the_whole_table_or_sorts(jobs: JobStore, clock: Clock) -> None:
    """Every statement of the operations that engines and clients call, as SQLite plans it."""
    statements: list[tuple[str, Any]] = []

    @sa.event.listens_for(jobs._reads, "before_cursor_execute")
    @sa.event.listens_for(jobs._engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((statement, parameters))

    for i in range(6):
        add(jobs, f"job-{i}", idempotency_key=f"key-{i}", body_sha256="00")
    jobs.get("job-0")
    jobs.find("alice", "key-3")
    for newest_first in (True, False):
        jobs.page("alice", None, 2, newest_first)
        jobs.page("alice", "job-2", 2, newest_first)
    jobs.place("job-5")
    jobs.backlog()
    first = lease(jobs)
    jobs.heartbeat("job-0", first.token, 10)
    jobs.complete("job-0", first.token, "0.mp4", "00")
    jobs.complete("job-0", first.token, "0.mp4", "00")
    jobs.fail("job-1", lease(jobs).token, "oom", "too big")
    jobs.give_up("job-2", lease(jobs).token, "internal", "broken")
    lease(jobs, "gone")
    jobs.release("gone", "killed")
    lease(jobs)
    jobs.extend()
    clock.now += 11
    assert expire(jobs) == ["engine"]
    jobs.delete("job-5", "alice")
    clock.now += 100
    jobs.unfinished_ids()
    jobs.fail_unserved(ServedModel("another"), clock.now)
    assert jobs.expired() == {"job-0", "job-1"}
    jobs.forget(["job-0", "job-1"])

    planned = [(text, values) for text, values in statements if text.startswith(("SELECT", "UPDATE", "DELETE"))]
    assert len(planned) > 30
    with jobs._engine.connect() as db:
        for text, values in planned:
            steps = [row.detail for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]
            assert steps, text
            if "status IN" in text:  # the unfinished jobs, which are few, are sorted
                steps = [step for step in steps if step != "USE TEMP B-TREE FOR ORDER BY"]
            assert all(step.startswith("SEARCH jobs USING") for step in steps), f"{steps}: {text}"


def asked_of(jobs: JobStore, job_id: str, name: str, base_sha256: str | None = None) -> None:
    request = {"model": name} | ({} if base_sha256 is None else {"base_sha256": base_sha256})
    assert isinstance(jobs.create(NewJob(job_id, "alice", request, None, f"{job_id}.png", 1.0)), Job)


@pytest.mark.parametrize(
    ("name", "base_sha256", "served", "same"),
    [
        ("film", "aa" * 32, ServedModel("film", "aa" * 32), True),
        ("film", "aa" * 32, ServedModel("hub/film@2", "aa" * 32), True),
        ("film", "aa" * 32, ServedModel("film", "bb" * 32), False),
        ("film", "aa" * 32, ServedModel("other", "bb" * 32), False),
        ("film", None, ServedModel("film", "aa" * 32), True),
        ("film", "", ServedModel("film", "aa" * 32), True),
        ("film", None, ServedModel("other", "aa" * 32), False),
        ("film", "aa" * 32, ServedModel("film"), True),
        ("film", "aa" * 32, ServedModel("other"), False),
    ],
)
def test_a_job_waits_for_an_engine_with_the_weights_that_it_was_asked_of(
    jobs: JobStore, clock: Clock, name: str, base_sha256: str | None, served: ServedModel, same: bool
) -> None:
    asked_of(jobs, "a", name, base_sha256)
    asked_of(jobs, "b", served.name, served.base_sha256)
    taken = jobs.lease_next("engine", "n", (None,), served)
    assert taken is not None
    assert taken.job.id == ("a" if same else "b")
    assert jobs.give_up(taken.job.id, taken.token, "internal", "drained", own=False)
    assert jobs.fail_unserved(served, clock.now) == 0, "asked for since"
    clock.now += 1
    assert jobs.fail_unserved(served, clock.now) == (0 if same else 1)
    assert get(jobs, "b").status == "queued"
    job = get(jobs)
    assert (job.status, job.error_code) == (("queued", None) if same else ("failed", "invalid"))
    if not same:
        assert job.error_message is not None
        assert all(model in job.error_message for model in (name, served.name))
        assert job.expires_at == clock.now + jobs.ttl_s


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path) -> None:
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}", queue_cap=10_000)
    add(jobs, "a")
    held = lease(jobs)
    with jobs._engine.connect() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar()

    def bounded(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={most}")

    most = pages + 2
    sa.event.listen(jobs._engine, "checkout", bounded)
    with pytest.raises(DatabaseFull, match="disk of the job database is full"):
        add_all(jobs, (f"b{i}" for i in range(1000)))
    assert get(jobs).status == "in_progress"
    page = jobs.page("alice", None, 1000, newest_first=True)
    assert page is not None
    written = [job.id for job in page.jobs]
    assert written == [f"b{i}" for i in reversed(range(len(written) - 1))] + ["a"], "whole rows, and no other"
    most = 1_000_000
    add(jobs, "c")
    assert jobs.complete("a", held.token, "a.1.mp4", "00")


def test_a_lock_of_another_that_lasts_longer_than_a_lease_costs_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.jobs.WAITED_S", 0.2)
    path = tmp_path / "jobs.db"
    jobs = JobStore(f"sqlite:///{path}", lease_s=0.5)
    add(jobs, "a")
    held = lease(jobs)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(2) as threads:
        heartbeat = threads.submit(jobs.heartbeat, "a", held.token, 10)
        time.sleep(1)
        assert jobs.silent_nodes() == {"n"}
        judged = threads.submit(jobs.expire, "n", True)
        time.sleep(0.5)
        other.execute("ROLLBACK")
        assert (judged.result(), heartbeat.result()) == ([], True)
    other.close()
    assert (get(jobs).status, get(jobs).attempts) == ("in_progress", 0)
    time.sleep(0.6)
    assert jobs.expire("n", own=True) == ["engine"], "without a lock a silent engine is one"
