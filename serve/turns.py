"""Turns at what does one thing at a time: owners alternate, however many requests one of them has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from serve.errors import ApiError


class Turns:
    """Of each owner one request stands in the line; the others wait for it. Those that wait keep no thread.

    Args:
        what: that is waited for, in the words of the refusal.
        wait_s: seconds after which one that waits is refused.
    """

    def __init__(self, what: str, wait_s: float) -> None:
        self.what, self.wait_s = what, wait_s
        self._line = asyncio.Lock()  # first come, first served
        self._of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """This owner's turn. Raises ApiError 503 where it does not come in time."""
        own = self._of.setdefault(owner, asyncio.Lock())
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self.wait_s):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._line)
            except TimeoutError as e:
                message = f"{self.what} did not get its turn within {self.wait_s:g} s; try again"
                raise ApiError(503, "busy", message, headers={"Retry-After": "5"}) from e
            yield
