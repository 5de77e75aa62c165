"""Work in threads. Nothing can stop a thread, so what it uses stays taken until it has ended, whoever still waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()
"""Keeps the tasks from the garbage collector: the event loop refers to them weakly."""


async def in_thread(
    held: AsyncExitStack, function: Callable[..., T], *args: Any, undo: Callable[[], None] | None = None
) -> T:
    """What a function returns that runs in a thread. Raises what it raises.

    Ray Serve cancels the request of a client that goes away. The thread works on, and until it ends nobody else gets
    what it holds.

    Args:
        held: turns, locks and slots; they are taken over from the caller, and let go of when the thread has ended.
        function, args: what is run.
        undo: called after the thread has ended, where the caller was cancelled meanwhile.
    """
    task = asyncio.create_task(_holding(held.pop_all(), function, *args))
    _running.add(task)
    task.add_done_callback(_running.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(partial(_abandoned, undo))
        raise


async def _holding(held: AsyncExitStack, function: Callable[..., T], *args: Any) -> T:
    async with held:
        return await asyncio.to_thread(function, *args)


def _abandoned(undo: Callable[[], None] | None, task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # asyncio logs an error that nobody asked for
    if undo is not None:
        undo()
