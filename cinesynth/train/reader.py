"""Reads the windows of a step while the step before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """What each step reads, by step; the next step's is read in a thread.

    Args:
        read: what a step needs. It runs in the thread, and no two calls at once.
        steps: how many steps there are.
    """

    def __init__(self, read: Callable[[int], Sequence[Item]], steps: int) -> None:
        self._read, self._steps = read, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reads-ahead")
        self._ahead: tuple[int, Future[Sequence[Item]]] | None = None

    def __call__(self, step: int) -> Sequence[Item]:
        """What `step` needs; the step after it is asked for."""
        ahead = self._ahead
        if ahead is None or ahead[0] != step:
            ahead = step, self._thread.submit(self._read, step)
        found = ahead[1].result()
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1)) if step + 1 < self._steps else None
        return found
