from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve import dispatch
from serve.config import ServeConfig
from serve.dispatch import Dispatcher, demand, open_store
from serve.jobs import Backlog, JobStore, NewJob
from serve.sweep import Sweeper


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


class Engines:
    """The engines' handle: each call waits until it is cancelled, as a queued request does."""

    def __init__(self) -> None:
        self.run_next = self
        self.calls: dict[str, asyncio.Future[str]] = {}
        self.withdrawn: list[str] = []

    def remote(self, call_id: str) -> Any:
        engines, future = self, asyncio.get_running_loop().create_future()
        self.calls[call_id] = future

        class Response:
            def __await__(self) -> Any:
                return future.__await__()

            def cancel(self) -> None:
                engines.withdrawn.append(call_id)

        return Response()


def dispatched(
    config: ServeConfig,
    check: Callable[[Dispatcher, Engines], Awaitable[None]],
    lives: Callable[[str], bool] = lambda node: True,
) -> None:
    async def run() -> None:
        engines = Engines()
        dispatcher = Dispatcher(config, engines, lives)
        dispatcher._keeper.cancel()  # the test ticks itself
        await check(dispatcher, engines)
        for call in dispatcher._calls.values():
            call.cancel()

    asyncio.run(run())


def queue(store: JobStore, *names: str) -> None:
    for name in names:
        store.create(NewJob(name, "alice", {}, None, f"{name}.png", 1.0))


def test_calls_follow_demand_and_those_without_a_lease_are_withdrawn(config: ServeConfig, store: JobStore) -> None:
    wide = config.model_copy(
        update={"target_wait_s": 1.0, "engine": config.engine.model_copy(update={"max_replicas": 3})}
    )
    queue(store, "a", "b", "c")

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()
        await asyncio.sleep(0)
        assert len(engines.calls) == 3
        holder = next(iter(engines.calls))
        lease = await dispatcher.lease_next(holder, "node", [None])
        assert lease is not None
        for name in "bc":  # another process finished them
            other = store.lease_next("other")
            assert other is not None
            assert store.complete(other.job.id, other.token, f"{name}.mp4", "00")
        await dispatcher._tick()
        await asyncio.sleep(0)
        assert sorted(engines.withdrawn) == sorted(set(engines.calls) - {holder})
        assert list(dispatcher._calls) == [holder], "the one that works stays"

    dispatched(wide, check)


def test_an_engine_that_works_for_an_earlier_dispatcher_keeps_a_request(config: ServeConfig, store: JobStore) -> None:
    queue(store, "a")
    assert store.lease_next("a call of before") is not None

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()
        await asyncio.sleep(0)
        assert len(engines.calls) == 1, "else Serve would scale the engine away"

    dispatched(config, check)


@pytest.mark.parametrize(
    ("steady", "wall", "expires"), [(1, 1, True), (60, 60, False), (1, 3600, False), (1, -3600, False)]
)
def test_leases_outlive_a_dispatcher_that_slept_and_a_clock_that_was_set(
    config: ServeConfig, store: JobStore, monkeypatch: pytest.MonkeyPatch, steady: float, wall: float, expires: bool
) -> None:
    queue(store, "a")

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        before = dispatcher._clocks
        assert store.lease_next("call") is not None
        monkeypatch.setattr(dispatch, "_clocks", lambda: (before[0] + steady, before[1] + wall))
        dispatcher.store.clock = lambda: before[1] + max(wall, config.lease_s + 5)
        await dispatcher._tick()
        job = store.get("a")
        assert job is not None
        assert (job.status == "queued") == expires

    dispatched(config, check)


def test_a_sweep_that_fails_renews_no_lease(
    config: ServeConfig, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(store, "a")

    def swept(self: Sweeper) -> int:
        raise PermissionError(13, "Permission denied", str(config.results()))

    monkeypatch.setattr(Sweeper, "sweep", swept)

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()  # one that raises renews all leases
        lease = store.lease_next("call")
        assert lease is not None
        dispatcher.store.clock = lambda: lease.expires_at + 1
        await dispatcher._tick()
        job = store.get("a")
        assert job is not None
        assert job.status == "queued", "the silent engine lost it"

    dispatched(config, check)


def test_a_job_of_a_model_that_is_not_served_any_more_fails_with_both_names(
    config: ServeConfig, store: JobStore
) -> None:
    for name, model in (("a", "former"), ("b", config.model_name())):
        store.create(NewJob(name, "alice", {"model": model}, None, f"{name}.png", 1.0))

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        store.create(NewJob("c", "alice", {"model": "next"}, None, "c.png", 1.0))
        await dispatcher._tick()
        jobs = [job for job in map(store.get, "abc") if job is not None]
        assert [(job.id, job.status) for job in jobs] == [("a", "failed"), ("b", "queued"), ("c", "queued")]
        assert "'former', and 'drawing' is served now" in (jobs[0].error_message or "")
        now = time.time()
        dispatcher.store.clock = lambda: now + dispatch.FOLLOWED_S + 1
        await dispatcher._tick()
        assert [job.status for job in map(store.get, "bc") if job is not None] == ["queued", "failed"]

    dispatched(config, check)


def test_a_call_that_found_nothing_is_not_made_again_at_once(config: ServeConfig, store: JobStore) -> None:
    queue(store, "a")
    assert store.lease_next("a call of before") is not None

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()
        await asyncio.sleep(0)
        for call in engines.calls.values():
            call.set_result("empty")  # the engine had no job for it
        for _ in range(5):
            await asyncio.sleep(0.01)
            await dispatcher._tick()
        assert len(engines.calls) == 1

    dispatched(config, check)


def hangs(node: str) -> bool:
    time.sleep(1.0)
    return False


def is_broken(node: str) -> bool:
    raise RuntimeError("no answer")


EVIDENCE = [
    pytest.param(lambda node: node == "another", 0, "the engine's node was lost (ConnectionError)", id="node lost"),
    pytest.param(lambda node: node == "node", 1, "the engine was lost (ConnectionError)", id="node lives"),
    pytest.param(hangs, 1, "the engine was lost (ConnectionError)", id="the cluster does not answer"),
    pytest.param(is_broken, 1, "the engine was lost (ConnectionError)", id="the cluster cannot be asked"),
]


@pytest.mark.parametrize(("lives", "attempts", "told"), EVIDENCE)
def test_a_lost_engine_costs_its_job_an_attempt_unless_its_node_was_lost(
    config: ServeConfig,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lives: Callable[[str], bool],
    attempts: int,
    told: str,
) -> None:
    queue(store, "a")
    monkeypatch.setattr(dispatch, "JUDGE_S", 0.2)

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()
        await asyncio.sleep(0)
        ((call_id, call),) = engines.calls.items()
        assert await dispatcher.lease_next(call_id, "node", [None]) is not None
        call.set_exception(ConnectionError("the replica died"))
        for _ in range(100):
            await asyncio.sleep(0.02)
            if (job := store.get("a")) is not None and job.status == "queued":
                break
        assert job is not None
        assert (job.status, job.attempts) == ("queued", attempts)
        assert told in caplog.text

    dispatched(config, check, lives)


@pytest.mark.parametrize(("lives", "attempts"), [(lambda node: node != "node", 0), (lambda node: node == "node", 1)])
def test_an_engine_that_fell_silent_costs_its_job_an_attempt_unless_its_node_was_lost(
    config: ServeConfig, store: JobStore, lives: Callable[[str], bool], attempts: int
) -> None:
    queue(store, "a", "b")

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()
        await asyncio.sleep(0)
        (call_id,) = engines.calls
        assert await dispatcher.lease_next(call_id, "node", [None]) is not None
        assert store.lease_next("of an earlier dispatcher") is not None
        dispatcher.store.clock = lambda: time.time() + config.lease_s + 1
        await dispatcher._tick()
        jobs = {name: store.get(name) for name in "ab"}
        told = {name: (job.status, job.attempts) for name, job in jobs.items() if job is not None}
        assert told == {"a": ("queued", attempts), "b": ("queued", 0)}, "nobody watched b's engine"
        await asyncio.sleep(0)
        assert call_id in engines.withdrawn

    dispatched(config, check, lives)


def test_a_job_fails_in_the_end_though_only_nodes_were_lost(config: ServeConfig) -> None:
    store = open_store(config.model_copy(update={"max_leases": 2}))
    queue(store, "a")
    for _ in range(2):
        assert store.lease_next("engine", "node") is not None
        store.release("engine", "the engine's node was lost", own=False)
    job = store.get("a")
    assert job is not None
    assert (job.status, job.attempts, job.error_code) == ("failed", 0, "rank_lost")


@pytest.mark.parametrize(
    ("told", "node_lives", "attempts"),
    [
        ("The actor died unexpectedly before finishing this task: SIGKILL", True, 1),
        ("The actor died unexpectedly before finishing this task: SIGKILL", False, 0),
        ("The actor is dead because it was killed by `ray.kill`.", True, 0),
    ],
)
def test_an_engine_that_was_taken_away_or_lost_its_node_costs_no_attempt(
    config: ServeConfig, store: JobStore, told: str, node_lives: bool, attempts: int
) -> None:
    queue(store, "a")

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        await dispatcher._tick()
        await asyncio.sleep(0)
        (call_id,) = engines.calls
        assert await dispatcher.lease_next(call_id, "node", [None]) is not None
        engines.calls[call_id].set_exception(RuntimeError(told))
        while (job := store.get("a")) is not None and job.status != "queued":
            await asyncio.sleep(0.01)
        assert job is not None
        assert job.attempts == attempts

    dispatched(config, check, lambda node: node_lives)


def test_an_engine_without_a_group_is_not_counted_until_it_leases_again(config: ServeConfig, store: JobStore) -> None:
    wide = config.model_copy(update={"engine": config.engine.model_copy(update={"max_replicas": 2})})
    queue(store, "a")

    async def check(dispatcher: Dispatcher, engines: Engines) -> None:
        async def tick() -> list[str]:
            await dispatcher._tick()
            await asyncio.sleep(0)
            return list(engines.calls)

        (call_id,) = await tick()
        lease = await dispatcher.lease_next(call_id, "node", [None])
        assert lease is not None
        assert store.give_up("a", lease.token, "rank_lost", "a rank died")
        await dispatcher.step_aside(call_id)
        assert len(await tick()) == 2, "another engine takes the job meanwhile"
        assert await dispatcher.lease_next(call_id, "node", [None]) is not None
        await tick()
        assert engines.withdrawn == [other for other in engines.calls if other != call_id]

    dispatched(wide, check)
