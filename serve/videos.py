"""The operations behind the routes: which requests are valid, what is kept of them, and what is answered."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from contextlib import AsyncExitStack
from contextvars import Context
from functools import partial
from pathlib import Path

from fastapi import Request

from cinesynth.registry import Registry
from serve.adapters import Adapters
from serve.auth import Key
from serve.bodies import Uploads, image_error, read_create, read_remix
from serve.config import ServeConfig
from serve.content import Content, Contents, Variant
from serve.errors import NO_RETRY, ApiError, disk_errors, disk_full
from serve.events import EventStream, Listening
from serve.jobs import Job, Jobs, JobStore, KeyReused, NewJob, QueueFull
from serve.media import ImageRefused, frame_png, write_whole
from serve.recent import Recent
from serve.records import DatabaseFull
from serve.schema import (
    DeletedVideo,
    JobRequest,
    Model,
    VideoList,
    remix,
    resolve,
    served_model,
    video,
)
from serve.threads import in_thread
from serve.turns import Turns

READY_S = 1.0
"""Seconds that an answer to whether requests can be taken holds, so that a flood of questions costs nothing."""
DECODE_WAIT_S = 10.0
"""Seconds that a first frame may wait until it is decoded: what its request holds, the body too, is held so long."""
POLLS = 10
"""Times that a client is asked to look for a video while it is made."""
POLL_MS = 500, 10_000
LOOKED_S = 0.25
"""Seconds that what the table said of a video answers who polls for it: so often a progress is shown anew."""
PREDICTED_S = 2.0
"""Seconds that a prediction holds for who asks again sooner, so that a poll costs one question to the table."""


class Videos:
    """The videos of all owners. Each operation sees those of the owner of the key only.

    Args:
        config: resolved configuration.
        jobs: runs the operations of the job table.
        registry: published adapters.
        base_sha256: hash of the served transformer.
    """

    def __init__(self, config: ServeConfig, jobs: Jobs, registry: Registry, base_sha256: str) -> None:
        self.config, self.jobs = config, jobs
        self.adapters = Adapters(registry, base_sha256)
        self._uploads = Uploads(config.uploads)
        self._contents = Contents()
        self._listening = Listening(jobs)
        self._since = int(time.time())
        self._poll_after: Recent[int] = Recent()
        self._looks: Recent[Job | None] = Recent()
        self._readiness: asyncio.Task[Exception | None] | None = None
        self._ready_until = 0.0
        self._free: Recent[int] = Recent()
        self._decoding = Turns("the first frame", DECODE_WAIT_S)

    async def create(self, request: Request, key: Key, idempotency_key: str | None) -> Job:
        """Validate the request, then queue the video. Raises ApiError."""
        async with AsyncExitStack() as held:  # the slot, until the body, which may be large, is no longer used
            deadline = await held.enter_async_context(self._uploads.slot(key.owner))
            async with deadline:
                body = await read_create(request, self.config)
            standing = await self._standing(key, idempotency_key, body.sha256)
            if standing is not None:
                return standing
            await self._check_room()
            job = resolve(body.request, self.config)
            if body.request.lora is not None:
                adapters = await asyncio.to_thread(self.adapters.chain, body.request.lora)
                job = job.model_copy(update={"adapters": adapters})
            _check_work(job, key)
            image = self._new_image()
            await held.enter_async_context(self._decoding.turn(key.owner))
            unlink = partial(image.unlink, missing_ok=True)
            await in_thread(held, self._keep_frame, body.image, image, job, undo=unlink)
            sha256 = body.sha256
            del body
        return await self._queue(job, key, image, idempotency_key, sha256)

    async def remix(self, video_id: str, request: Request, key: Key, idempotency_key: str | None) -> Job:
        """Queue a video of the same frame and settings with another prompt. Raises ApiError."""
        async with self._uploads.slot(key.owner) as deadline, deadline:
            body = await read_remix(request, video_id)
        standing = await self._standing(key, idempotency_key, body.sha256)
        if standing is not None:
            return standing
        await self._check_room()
        parent = await self.job(video_id, key)
        job = remix(JobRequest.model_validate(parent.request), body.request.prompt, self.config)
        await asyncio.to_thread(self.adapters.check_published, job.adapters)
        _check_work(job, key)
        image = self._new_image()
        source, unlink = self.config.inputs() / parent.image, partial(image.unlink, missing_ok=True)
        await in_thread(AsyncExitStack(), self._copy_frame, source, image, video_id, undo=unlink)
        return await self._queue(job, key, image, idempotency_key, body.sha256, remixed_from=video_id)

    async def job(self, video_id: str, key: Key) -> Job:
        """The owner's job. Raises ApiError 404 when there is none, or it is another owner's."""
        return _owned(await self._row(video_id), video_id, key)

    async def _row(self, video_id: str) -> Job | None:
        return await self.jobs(JobStore.get, video_id) if _may_exist(video_id) else None

    async def look(self, video_id: str, key: Key) -> Job:
        """As `job`, up to `LOOKED_S` old: polls that come together ask the table once. Raises ApiError 404."""
        job = await self._looks.get(video_id, LOOKED_S, lambda: self._row(video_id))
        return _owned(job, video_id, key)

    async def poll_after_ms(self, job: Job) -> int | None:
        """When to ask again for a job that has not ended, where the table says."""
        if job.status in ("completed", "failed"):
            return None
        try:
            return await self._poll_after.get(job.id, PREDICTED_S, lambda: self._predicted_ms(job.id))
        except ApiError:  # no reason to call a video refused that was queued
            return None

    async def _predicted_ms(self, job_id: str) -> int:
        place = await self.jobs(JobStore.place, job_id)
        low, high = POLL_MS
        return low if place is None else round(min(max(place.eta_s * 1000 / POLLS, low), high))

    async def page(self, key: Key, after: str | None, limit: int, newest_first: bool) -> VideoList:
        """Some of the owner's videos by age. Raises ApiError 404 where `after` is none of them."""
        page = None
        if after is None or _may_exist(after):
            page = await self.jobs(JobStore.page, key.owner, after, limit, newest_first)
        if page is None:
            raise _not_found(after, "after")
        videos = [video(job) for job in page.jobs]
        first, last = (videos[0].id, videos[-1].id) if videos else (None, None)
        return VideoList(data=videos, first_id=first, last_id=last, has_more=page.has_more)

    async def delete(self, video_id: str, key: Key) -> DeletedVideo:
        """Delete a video with its files; one that is being made stops. Raises ApiError 404."""
        job = await self.jobs(JobStore.delete, video_id, key.owner) if _may_exist(video_id) else None
        if job is None:
            raise _not_found(video_id)
        self._looks.forget(video_id)
        await asyncio.to_thread(self._unlink, job)
        return DeletedVideo(id=video_id)

    async def content(self, video_id: str, key: Key, variant: Variant) -> Content:
        """A variant of the finished video, in a response that answers byte ranges. Raises ApiError (404, 409)."""
        job = await self.job(video_id, key)
        if job.status == "failed":
            message = f"{video_id} failed ({job.error_code}): {job.error_message}"
            raise ApiError(409, "failed", message, headers=NO_RETRY)
        if job.status != "completed" or job.result is None:
            message = f"{video_id} is {job.status} ({job.progress} %); ask again when completed"
            raise ApiError(409, "not_ready", message, headers=NO_RETRY)
        with disk_errors():
            return await self._contents.response(self.config.results() / job.result, video_id, variant)

    async def events(self, video_id: str, key: Key, last: str | None) -> EventStream:
        """The video's course as it happens. Raises ApiError 404."""
        return EventStream(self._listening, await self.job(video_id, key), last)

    async def ready(self) -> None:
        """Find out whether requests can be taken, once a second for all that ask. Raises ApiError (503, 507)."""
        loop = asyncio.get_running_loop()
        task = self._readiness
        if task is None or task.cancelled() or (task.done() and loop.time() >= self._ready_until):
            # In no request's context: Serve cancels what belongs to a client that goes away.
            task = self._readiness = loop.create_task(self._find_readiness(), context=Context())
        refusal = await asyncio.shield(task)  # one that goes away takes the answer from nobody
        if refusal is not None:
            raise refusal.with_traceback(None)  # which would grow with each that is told

    async def _find_readiness(self) -> Exception | None:
        """Why requests cannot be taken. The answer holds for `READY_S`, whatever it is."""
        try:
            await self.jobs(JobStore.backlog)
            await self._check_room()
            return None
        except Exception as e:
            return e
        finally:
            self._ready_until = asyncio.get_running_loop().time() + READY_S

    async def _check_room(self) -> None:
        """Raise ApiError 507 where the disk has less room than `min_free_bytes`, as far as was seen in `READY_S`."""
        if await self._free.get("", READY_S, self._free_bytes) < self.config.min_free_bytes:
            raise disk_full()

    async def _free_bytes(self) -> int:
        return (await asyncio.to_thread(shutil.disk_usage, self.config.inputs())).free

    def model(self) -> Model:
        """What is served."""
        return served_model(self.config, self._since)

    async def _standing(self, key: Key, idempotency_key: str | None, body_sha256: str) -> Job | None:
        """The job that an equal request of this idempotency key has queued. Raises ApiError 409 for another one."""
        if idempotency_key is None:
            return None
        job = await self.jobs(JobStore.find, key.owner, idempotency_key)
        if job is not None and job.body_sha256 != body_sha256:
            raise _key_reused(job.id)
        return job

    async def _queue(
        self,
        request: JobRequest,
        key: Key,
        image: Path,
        idempotency_key: str | None,
        body_sha256: str,
        remixed_from: str | None = None,
    ) -> Job:
        request = request.model_copy(update={"base_sha256": self.adapters.base_sha256})
        new = NewJob(
            image.stem,
            key.owner,
            request.model_dump(mode="json"),
            request.adapters_key(),
            image.name,
            request.work,
            idempotency_key=idempotency_key,
            body_sha256=body_sha256,
            remixed_from=remixed_from,
        )
        try:
            created = await self.jobs(JobStore.create, new)
        except DatabaseFull:
            image.unlink(missing_ok=True)
            raise
        except ApiError as e:
            if e.code != "unavailable":
                raise
            # The table may still take it. One that asks again blindly would get two videos, but for the key.
            message = f"the job table does not answer; {new.id} may be queued"
            advice, headers = "ask for it before you try again", NO_RETRY
            if idempotency_key is not None:
                advice, headers = "try again with the same Idempotency-Key", {"Retry-After": "5"}
            raise ApiError(503, "outcome_unknown", f"{message}: {advice}", headers=headers) from e
        if isinstance(created, Job) and created.id == new.id:
            return created
        image.unlink(missing_ok=True)
        if isinstance(created, QueueFull):
            headers = {"Retry-After": str(created.retry_after_s)}
            message = f"{self.config.queue_cap} videos are queued; try again later"
            raise ApiError(429, "queue_full", message, headers=headers)
        if isinstance(created, KeyReused):
            raise _key_reused(created.job_id)
        return created  # an equal request was faster

    def _new_image(self) -> Path:
        """Where the first frame of a new video is kept. Nobody can guess the video's id, which is the file's name."""
        return self.config.inputs() / f"video_{secrets.token_hex(16)}.png"

    def _keep_frame(self, data: bytes, path: Path, job: JobRequest) -> None:
        """Keep the first frame in the video's size, as the generator would crop it: a photograph takes megabytes."""
        try:
            with disk_errors():
                write_whole(frame_png(data, self.config.image, job.height, job.width), path)
        except ImageRefused as e:
            raise image_error(e) from e

    def _copy_frame(self, source: Path, path: Path, video_id: str) -> None:
        try:
            with disk_errors():
                write_whole(source.read_bytes(), path)
        except FileNotFoundError as e:
            message = f"the first frame of {video_id} is no longer kept; send it again in a request of its own"
            raise ApiError(409, "frame_gone", message, headers=NO_RETRY) from e

    def _unlink(self, job: Job) -> None:
        (self.config.inputs() / job.image).unlink(missing_ok=True)
        for folder in (self.config.results(), self.config.states()):
            for path in folder.glob(f"{job.id}.*"):
                path.unlink(missing_ok=True)


def _check_work(job: JobRequest, key: Key) -> None:
    if key.max_flops_per_job is not None and job.work > key.max_flops_per_job:
        message = (
            f"the video takes {job.work:.3g} FLOPs, and this key may ask for {key.max_flops_per_job:.3g} at once; "
            "ask for fewer frames or steps, a smaller size, or less guidance"
        )
        extra = {"predicted_flops": job.work, "max_flops_per_job": key.max_flops_per_job}
        raise ApiError(400, "too_much_work", message, extra=extra)


def _may_exist(video_id: str) -> bool:
    """Whether the table need be asked at all."""
    return len(video_id) <= 64 and video_id.isascii() and video_id.isprintable()


def _owned(job: Job | None, video_id: str, key: Key) -> Job:
    if job is None or job.owner != key.owner:
        raise _not_found(video_id)
    return job


def _not_found(video_id: str | None, param: str = "id") -> ApiError:
    return ApiError(404, "not_found", f"no video {video_id!r}", param)


def _key_reused(job_id: str) -> ApiError:
    message = f"this Idempotency-Key was sent with another body, which made {job_id}; choose another key"
    return ApiError(409, "idempotency_key_reused", message, "Idempotency-Key", headers=NO_RETRY)
