"""Answers that hold for a while, so that those who ask for the same at about the same time cost one question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

REMEMBERED = 1000
"""Answers that are kept."""


class Recent(Generic[T]):
    """Answers by key. Questions of one key that come together are asked once; an error is no answer to keep.

    A question is asked outside the context of any request: Ray Serve cancels what belongs to a client that goes away.
    """

    def __init__(self) -> None:
        self._answers: dict[str, tuple[float, asyncio.Task[T]]] = {}

    async def get(self, key: str, hold_s: float, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer, up to `hold_s` seconds old. Raises what `ask` raises."""
        loop = asyncio.get_running_loop()
        until, task = self._answers.get(key, (0.0, None))
        if task is None or loop.time() >= until:
            if len(self._answers) >= REMEMBERED:
                self._answers.clear()
            task = loop.create_task(ask(), context=Context())
            self._answers[key] = loop.time() + hold_s, task
            task.add_done_callback(partial(self._drop_failed, key))
        return await asyncio.shield(task)  # one that goes away takes the answer from nobody

    def forget(self, key: str) -> None:
        """What was answered holds no more."""
        self._answers.pop(key, None)

    def _drop_failed(self, key: str, task: asyncio.Task[T]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._answers.get(key, (0.0, None))[1] is task:
            del self._answers[key]
