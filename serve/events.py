"""A video's course as server-sent events: `GET /v1/videos/{id}/events`.

However many listen to a video, the job table is asked once a second. An event tells the video's state and its id names
that state, so one who comes back with `Last-Event-ID`, to whichever replica, is told what changed since.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Literal

import anyio
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.errors import ApiError
from serve.jobs import Job, Jobs, JobStore
from serve.request_id import request_log
from serve.schema import VideoError

logger = request_log(__name__)

POLL_S = 1.0
HEARTBEAT_S = 15.0
"""Seconds of silence after which a comment is sent: what lies between may close a silent connection."""
PER_KEY = 8
AT_ONCE = 256


class VideoState(BaseModel):
    """What an event tells. The event is called `status`; the last one `completed`, `failed` or `deleted`."""

    status: Literal["queued", "in_progress", "completed", "failed", "deleted"]
    progress: int
    position: int | None
    """In the queue: 0 is being made, 1 is next; None once it has ended."""
    eta_s: float | None
    """Predicted seconds until it is completed."""
    error: VideoError | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "deleted")

    @property
    def id(self) -> str:
        """Two states with one id look alike to who waits; the prediction moves all the time."""
        place = "" if self.position is None else f"-{self.position}"
        return f"{self.status}-{self.progress}{place}"

    def event(self) -> bytes:
        """As it is sent."""
        name = self.status if self.ended else "status"
        data = json.dumps(self.model_dump(mode="json", exclude=None if self.error else {"error"}))
        return f"id: {self.id}\nevent: {name}\ndata: {data}\n\n".encode()


async def state_of(jobs: Jobs, job: Job | None) -> VideoState:
    """The state of a job; None: it was deleted."""
    if job is None:
        return VideoState(status="deleted", progress=0, position=None, eta_s=None)
    place = None if job.status in ("completed", "failed") else await jobs(JobStore.place, job.id)
    stands_at = "ended" if place is None else "queued" if place.position else "in_progress"
    if stands_at != ("ended" if job.status in ("completed", "failed") else job.status):  # it moved on meanwhile
        return await state_of(jobs, await jobs(JobStore.get, job.id))
    return VideoState(
        status=job.status,
        progress=job.progress,
        position=None if place is None else place.position,
        eta_s=None if place is None else round(place.eta_s, 1),
        error=VideoError(code=job.error_code, message=job.error_message or "") if job.error_code else None,
    )


class Watch:
    """One video's newest state, for all who listen to it."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self.jobs, self.job_id = jobs, job.id
        self.listeners = 0
        self.state: VideoState | None = None
        self._changed = asyncio.Event()
        # In no request's context: Serve cancels what belongs to a client that goes away.
        self.task = asyncio.get_running_loop().create_task(self._ask(job), context=Context())

    async def _ask(self, job: Job | None) -> None:
        while True:
            try:
                self.state = await state_of(self.jobs, job)
                self._wake()
                if self.state.ended:
                    return
                await asyncio.sleep(POLL_S)
                job = await self.jobs(JobStore.get, self.job_id)
            except ApiError as e:  # the table may be restarting
                logger.info("%s: %s", self.job_id, e)
                await asyncio.sleep(POLL_S)
            except Exception:  # the streams end; who listens comes back
                logger.exception("the events of %s ended", self.job_id)
                return

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def states(self, last: str | None) -> AsyncIterator[VideoState | None]:
        """The state whenever its id is another than the one told last; None after a silence of `HEARTBEAT_S`.

        Ends after the video's end, or when the table cannot be asked at all.
        """
        clock = asyncio.get_running_loop().time
        quiet_until = clock() + HEARTBEAT_S
        while True:
            changed, state = self._changed, self.state
            if state is not None and state.id != last:
                last = state.id
                yield state
                if state.ended:
                    return
                quiet_until = clock() + HEARTBEAT_S
            elif self.task.done():
                return
            elif clock() >= quiet_until:
                yield None
                quiet_until = clock() + HEARTBEAT_S
            else:
                waiting = asyncio.ensure_future(changed.wait())
                either = {waiting, self.task}
                try:
                    await asyncio.wait(either, timeout=quiet_until - clock(), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()


class Listening:
    """Who listens to what: slots for streams, and one watch a video."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self._of: Counter[str] = Counter()
        self._watches: dict[str, Watch] = {}

    @contextmanager
    def to(self, job: Job) -> Iterator[Watch]:
        """A slot for a stream of the job's owner, and the watch. Raises ApiError (429, 503)."""
        if self._of[job.owner] >= PER_KEY:
            message = f"{PER_KEY} streams of this key are open; close one of them"
            raise ApiError(429, "too_many_streams", message, headers={"Retry-After": "5"})
        if self._of.total() >= AT_ONCE:
            message = f"{AT_ONCE} streams are open; ask for the video's status in place of its events"
            raise ApiError(503, "too_many_streams", message, headers={"Retry-After": "30"})
        self._of[job.owner] += 1
        watch = self._watches.get(job.id)
        if watch is None or watch.task.done():
            watch = self._watches[job.id] = Watch(self.jobs, job)
        watch.listeners += 1
        try:
            yield watch
        finally:
            watch.listeners -= 1
            if not watch.listeners:
                watch.task.cancel()
                if self._watches.get(job.id) is watch:
                    del self._watches[job.id]
            self._of[job.owner] -= 1
            self._of += Counter()  # drops those at zero


class EventStream(Response):
    """The events of a video. A client that goes away frees its slot at once.

    Args:
        listening: where the slots are.
        job: the video.
        last: the id of the event that the client was told last.
    """

    media_type = "text/event-stream"

    def __init__(self, listening: Listening, job: Job, last: str | None) -> None:
        super().__init__()
        self.listening, self.job, self.last = listening, job, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell() -> None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            headers.append((b"x-accel-buffering", b"no"))  # nginx would hold events back
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for state in watch.states(self.last):
                told = b": still here\n\n" if state is None else state.event()
                await send({"type": "http.response.body", "body": told, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()

        async def until_gone() -> None:
            with suppress(Exception):  # Serve's proxy tells of some that went by an error of its own
                while (await receive())["type"] != "http.disconnect":
                    pass
            group.cancel_scope.cancel()

        ended = self.job.status in ("completed", "failed")
        if ended and (await state_of(self.listening.jobs, self.job)).id == self.last:
            # So told, browsers come back no more.
            await Response(status_code=204)(scope, receive, send)
            return
        with self.listening.to(self.job) as watch:
            async with anyio.create_task_group() as group:
                group.start_soon(until_gone)
                await tell()
