"""Answers that are shared: they belong to none of those who ask, and what went wrong is asked anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve.config import ServeConfig
from serve.events import Watch
from serve.jobs import JobStore, LocalJobs, NewJob
from serve.recent import Recent
from serve.videos import Videos
from tests.serve.conftest import BASE_SHA256

_request: ContextVar[str] = ContextVar("request", default="none")


class Noting:
    """A job table that notes in whose context it is asked."""

    def __init__(self, jobs: LocalJobs) -> None:
        self.jobs, self.asked_by = jobs, list[str]()

    async def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked_by.append(_request.get())
        return await self.jobs(operation, *args, **kwargs)


def test_a_shared_answer_is_not_found_in_the_context_of_who_asked_first() -> None:
    async def ask() -> str:
        return _request.get()

    async def first() -> str:
        _request.set("first")
        return await Recent[str]().get("x", 60, ask)

    assert asyncio.run(first()) == "none"


def test_readiness_and_events_are_not_found_in_the_context_of_who_asked_first(
    config: ServeConfig, store: JobStore
) -> None:
    jobs = Noting(LocalJobs(store))
    created = store.create(NewJob("video_a", "alice", {}, "", "video_a.png", 1.0))

    async def first() -> None:
        _request.set("first")
        await Videos(config, jobs, Registry(Storage.open(config.storage)), BASE_SHA256).ready()
        assert len(jobs.asked_by) == 1
        watch = Watch(jobs, created)
        async for _ in watch.states(None):
            break
        watch.task.cancel()

    asyncio.run(first())
    assert len(jobs.asked_by) >= 2
    assert set(jobs.asked_by) == {"none"}


@pytest.mark.parametrize("wrong", [asyncio.CancelledError, OSError])
def test_a_question_that_was_cancelled_or_failed_is_asked_anew(wrong: type[BaseException]) -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        if asked == 1:
            raise wrong
        return asked

    async def twice() -> None:
        recent: Recent[int] = Recent()
        with pytest.raises(wrong):
            await recent.get("x", 60, ask)
        assert await recent.get("x", 60, ask) == 2
        assert await recent.get("x", 60, ask) == 2

    asyncio.run(twice())


def test_a_failure_takes_no_newer_answer_away() -> None:
    begun, fail = asyncio.Event(), asyncio.Event()
    asked = 0

    async def failing() -> int:
        begun.set()
        await fail.wait()
        raise FileNotFoundError

    async def answered() -> int:
        nonlocal asked
        asked += 1
        return 2

    async def ask() -> None:
        recent: Recent[int] = Recent()
        first = asyncio.create_task(recent.get("x", 60, failing))
        await begun.wait()
        recent.forget("x")
        assert await recent.get("x", 60, answered) == 2
        fail.set()
        with pytest.raises(FileNotFoundError):
            await first
        assert await recent.get("x", 60, answered) == 2
        assert asked == 1

    asyncio.run(ask())


def test_readiness_that_was_cancelled_is_found_anew(config: ServeConfig) -> None:
    class Away:
        asked = 0

        async def __call__(self, *_: Any, **__: Any) -> None:
            self.asked += 1
            if self.asked == 1:
                raise asyncio.CancelledError

    jobs: Any = Away()
    config.inputs().mkdir(parents=True)

    async def twice() -> None:
        videos = Videos(config, jobs, Registry(Storage.open(config.storage)), BASE_SHA256)
        with pytest.raises(asyncio.CancelledError):
            await videos.ready()
        await videos.ready()

    asyncio.run(twice())
