from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve import dispatch
from serve.config import ServeConfig
from serve.dispatch import Dispatcher, demand, sweep
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


def dispatched(config: ServeConfig, check: Callable[[Dispatcher, Engines], Awaitable[None]]) -> None:
    async def run() -> None:
        engines = Engines()
        dispatcher = Dispatcher(config, engines)
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
        lease = await dispatcher.lease_next(holder, [None])
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
