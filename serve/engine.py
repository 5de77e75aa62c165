"""An engine replica: it leases one job at a time from the Dispatcher, directs the group of processes that makes the
video, and reports how far it is.

The replica itself loads no model: it is the coordinator of a `RankGroup`, whose processes lie in its placement group.
A thread waits for the group; meanwhile the event loop renews the lease. When the lease is lost, the video is called off
and the group is idle within a step. A group that was lost is made anew, and its job goes back to the queue: the next
attempt goes on from the state that was kept. When the group cannot be made anew, or the fault is of another kind, the
job goes back too, and this process ends: Serve starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Concatenate, Literal, Protocol

import numpy as np

from cinesynth.config import SamplerSettings
from cinesynth.errors import (
    AdapterError,
    GenerationError,
    MediaError,
    OutOfMemory,
    RankLost,
    StorageError,
    StorageFailed,
)
from cinesynth.generate.course import Cancelled
from cinesynth.generate.messages import Status, VideoRequest
from cinesynth.pictures import png_bytes
from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve.config import ServeConfig
from serve.dispatch import DISPATCHER, DispatcherJobs
from serve.jobs import ErrorCode, JobStore, Lease, P, T
from serve.records import ServedModel
from serve.schema import JobRequest

logger = logging.getLogger(__name__)

Outcome = Literal["empty", "completed", "failed", "lost"]

FINAL: tuple[ErrorCode, ...] = ("invalid", "oom")
"""Failures that another attempt would meet again."""
LEAVE_S = 0.5
"""Seconds between the answer to a call and the end of a broken engine's process."""
DEAF_S = 120.0
"""Seconds after which a thread that no longer hears of its group is given up. The group finds a rank that hangs."""
REPORT_S = 600.0
"""Seconds for which an outcome is told again: no video that took minutes is thrown away for a Dispatcher's restart."""
RETRY_S = 2.0, 60.0
"""Shortest and longest pause before a group is tried again that could not be made."""


class VideoGroup(Protocol):
    """What an engine directs; `cinesynth.generate.group.RankGroup` is one and says what its methods raise."""

    def alive(self) -> bool: ...
    def start(self, request: VideoRequest) -> None: ...
    def cancel(self) -> None: ...
    def result(self, look: Callable[[Status], None]) -> dict[str, Any]: ...
    def close(self) -> None: ...


Groups = Callable[[ServeConfig], VideoGroup]
"""Makes a group with its model loaded."""


def rank_group(config: ServeConfig, generator: Callable[..., Any] | None = None) -> VideoGroup:
    """A group in the placement group that Serve made for this replica; `generator` is that of `GroupShape`."""
    import ray

    from cinesynth.generate.group import RankGroup

    return RankGroup(replace(config.group_shape(), generator=generator), ray.util.get_current_placement_group())


class EngineBroken(Exception):
    """There is no group any more, or its thread is stuck. The replica must be replaced."""


class NotBegun(RankLost):
    """A group that was lost between two videos."""


NO_FAULT_OF_THE_JOB = (NotBegun, StorageFailed, StorageError, OSError)
"""What costs a job no attempt."""


class Attempt:
    """The work on one lease. The thread that waits for the group and the event loop share it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.request = JobRequest.model_validate(lease.job.request)
        self.progress = 0
        self.alive_at = time.monotonic()
        self.lost = threading.Event()
        self.called_off = False

    def heard(self, status: Status) -> None:
        """Note how far the group is."""
        self.alive_at = time.monotonic()
        if status.total:
            self.progress = 100 * status.step // status.total

    @property
    def file(self) -> str:
        """Of the result. It has the lease's token, so that no attempt writes over another's file."""
        return f"{self.lease.job.id}.{self.lease.token}.mp4"


class Engine:
    """The deployment "Engine": the coordinator of one group. It is ready once the group's model is loaded and warm.

    Args:
        config: resolved configuration.
        groups: makes the group, in the thread that waits for it.
        dispatcher: handle of the Dispatcher. Default: the one of this application.
        base_sha256: hash of the served transformer; "": not known.
    """

    def __init__(
        self,
        config: ServeConfig,
        groups: Groups = rank_group,
        dispatcher: Any = None,
        base_sha256: str = "",
    ) -> None:
        self.config = config
        self.storage = Storage.open(config.storage)
        self.registry = Registry(self.storage)
        self._dispatcher = dispatcher
        self._groups = groups
        self._served = ServedModel(config.model_name(), base_sha256)
        self._broken: str | None = None
        self._loaded: str | None = None
        self._group: VideoGroup | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="group")
        self._thread.submit(self._first_group).result()

    @property
    def dispatcher(self) -> Any:
        """The Dispatcher's handle. It is looked up late: the Dispatcher itself holds a handle of this deployment."""
        if self._dispatcher is None:
            from ray import serve as ray_serve

            self._dispatcher = ray_serve.get_deployment_handle(DISPATCHER, ray_serve.get_replica_context().app_name)
        return self._dispatcher

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self._broken:
            raise EngineBroken(self._broken)

    async def run_next(self, call_id: str) -> Outcome:
        """Lease the best job for this replica and work on it until it is done, failed or lost.

        Args:
            call_id: the Dispatcher's name for this call; it becomes the holder of the lease.
        """
        self.check_health()
        if not await self._in_thread(self._alive):
            await self._renew_group(call_id)
            self.check_health()
        lease = await self.dispatcher.lease_next.remote(call_id, _node(), [self._loaded], self._served)
        if lease is None:
            return "empty"
        attempt = Attempt(lease)
        working = self._in_thread(self._make, attempt)
        try:
            if not await self._watch(attempt, working):
                return "lost"
            made = working.result()
        except asyncio.CancelledError:
            attempt.lost.set()
            raise
        except Cancelled:
            return "lost"
        except Exception as e:
            return await self._fail(call_id, attempt, e)
        return await self._complete(attempt, made)

    def _in_thread(self, action: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, action, *args)

    async def _watch(self, attempt: Attempt, working: asyncio.Future[Any]) -> bool:
        """Renew the lease until the work ends. False when the thread is stuck and was given up."""
        while True:
            await asyncio.wait({working}, timeout=self.config.heartbeat_s)
            if working.done():
                return True
            if time.monotonic() - attempt.alive_at > DEAF_S:
                break
            if not attempt.lost.is_set() and not await self._renew(attempt):
                attempt.lost.set()
        attempt.lost.set()
        self._broken = f"nothing was heard of its processes for {DEAF_S:g} s"
        await self._give_back(attempt, "timeout", f"the engine was stuck: {self._broken}", True)
        self._leave()
        return False

    async def _give_back(self, attempt: Attempt, code: ErrorCode, message: str, own: bool) -> None:
        """Queue the job again for another attempt. `own`: it counts against the job."""
        lease = attempt.lease
        try:
            await self._report(JobStore.give_up, lease.job.id, lease.token, code, message, own)
        except Exception:
            logger.exception("%s cannot be given back; its lease runs out", lease.job.id)

    def _leave(self) -> None:
        """End this process, once the call under way is answered, and the group's with it: what hangs or is broken holds
        GPUs, which the replica that takes its place needs. Serve itself would drain it first."""
        asyncio.get_running_loop().call_later(LEAVE_S, os._exit, 1)

    async def _renew(self, attempt: Attempt) -> bool:
        try:
            jobs, lease = DispatcherJobs(self.dispatcher), attempt.lease
            renewing = jobs(JobStore.heartbeat, lease.job.id, lease.token, attempt.progress)
            return await asyncio.wait_for(renewing, self.config.lease_s / 2)
        except Exception as e:
            # The Dispatcher may be restarting. When it is back, the token decides whether the lease still holds.
            logger.warning("%s: heartbeat failed: %r", attempt.lease.job.id, e)
            return True

    async def _report(
        self, outcome: Callable[Concatenate[JobStore, P], bool], *args: P.args, **kwargs: P.kwargs
    ) -> bool:
        """Tell the Dispatcher an outcome. While it does not answer, or its table takes nothing, tell it again: a lease
        lasts over that time, and telling it twice changes nothing."""
        deadline = time.monotonic() + REPORT_S
        while True:
            try:
                telling = DispatcherJobs(self.dispatcher)(outcome, *args, **kwargs)
                return await asyncio.wait_for(telling, self.config.lease_s)
            except Exception as e:
                if time.monotonic() > deadline:
                    raise
                logger.warning("the Dispatcher did not take %s, trying again: %r", outcome.__name__, e)
                await asyncio.sleep(min(1.0, self.config.heartbeat_s))

    async def _complete(self, attempt: Attempt, made: dict[str, Any]) -> Outcome:
        lease = attempt.lease
        told = attempt.file, made["sha256"], made["seconds"]
        if await self._report(JobStore.complete, lease.job.id, lease.token, *told):
            with contextlib.suppress(OSError):  # the sweep deletes it, too
                (self.config.home() / _state_file(lease.job.id)).unlink(missing_ok=True)
            return "completed"
        (self.config.results() / attempt.file).unlink(missing_ok=True)
        return "lost"

    async def _fail(self, call_id: str, attempt: Attempt, error: Exception) -> Outcome:
        lease = attempt.lease
        code, message = explain(error)
        logger.error("%s failed (%s)", lease.job.id, code, exc_info=error)
        outcome: Outcome = "lost"
        if code in FINAL:
            if await self._report(JobStore.fail, lease.job.id, lease.token, code, message):
                outcome = "failed"
        else:
            await self._give_back(attempt, code, message, not isinstance(error, NO_FAULT_OF_THE_JOB))
        if isinstance(error, RankLost | OutOfMemory):
            await self._renew_group(call_id)
        elif code not in FINAL:
            # Perhaps this process is at fault: another one tries, and this one takes no more.
            self._broken = message
            self._leave()
        return outcome

    async def _renew_group(self, call_id: str) -> None:
        """Make the group anew, while Serve still counts this replica as busy; without one, end the process."""
        try:
            await self.dispatcher.step_aside.remote(call_id)
        except Exception as e:
            logger.warning("the Dispatcher was not told that this engine has no group: %r", e)
        try:
            await asyncio.shield(self._in_thread(self._new_group))
        except Exception as e:
            logger.exception("the group cannot be made anew")
            self._broken = f"its group is lost, and no other one can be made ({type(e).__name__})"
            self._leave()

    # --- in the thread that waits for the group --------------------------------------------------------------

    def _first_group(self) -> None:
        """Make a group, however often it takes: after a few replicas that fail to start, Serve would start no more."""
        shortest, longest = RETRY_S
        pause = shortest
        while True:
            try:
                return self._new_group()
            except Exception:
                logger.exception("no group can be made; trying again in %g s", pause)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _new_group(self) -> None:
        former, self._group, self._loaded = self._group, None, None
        if former is not None:
            former.close()
        group = self._groups(self.config)
        if self.config.engine.warm_up:
            try:
                self._warm_up(group)
            except BaseException:
                group.close()
                raise
        self._group = group

    def _alive(self) -> bool:
        return self._group is not None and self._group.alive()

    def _warm_up(self, group: VideoGroup) -> None:
        """One step of a video in the default shape: what is loaded, compiled or reserved at first is so afterwards."""
        (height, width), started = self.config.sizes[0], time.monotonic()
        with tempfile.TemporaryDirectory() as folder:  # on this node, as the processes are
            sampler = SamplerSettings(steps=1, guidance_scale=self.config.defaults.guidance_scale)
            request = VideoRequest(
                storage=self.storage.reference(),
                output=Storage.open(folder).reference(),
                file="warm-up.mp4",
                sampler=sampler,
                image=png_bytes(np.zeros((height, width, 3), np.uint8)),
                prompt="warm-up",
                num_frames=self.config.default_frames,
                height=height,
                width=width,
            )
            group.start(request)
            group.result(lambda status: None)
        logger.info("warm after %.1f s", time.monotonic() - started)

    def _make(self, attempt: Attempt) -> dict[str, Any]:
        """Have the group make and store the video. Returns as `RankGroup.result`, and raises what `explain` knows."""
        request, group = self._request(attempt), self._group
        if attempt.lost.is_set():
            raise Cancelled("before it began")
        if group is None:
            raise NotBegun("the group is lost")
        try:
            group.start(request)
        except RankLost as e:
            raise NotBegun(str(e)) from e

        def look(status: Status) -> None:
            attempt.heard(status)
            if attempt.lost.is_set() and not attempt.called_off:
                attempt.called_off = True
                group.cancel()

        made = group.result(look)
        self._loaded = attempt.lease.job.adapter
        return made

    def _request(self, attempt: Attempt) -> VideoRequest:
        """What the group is told. Raises MediaError without a first frame, AdapterError for one that was exchanged."""
        job, asked = attempt.lease.job, attempt.request
        try:
            image = (self.config.inputs() / job.image).read_bytes()
        except FileNotFoundError as e:  # other errors are the folder's, and may pass
            if not self.config.inputs().is_dir():
                raise StorageError(f"{self.config.inputs()} is not there") from e
            raise MediaError("the first frame is no longer there; send the request again") from e
        for adapter in asked.adapters:
            try:
                found, asked_for = self.registry.resolve(adapter.ref).sha256, adapter.sha256
            except AdapterError as e:
                logger.warning("%s", e)  # it names all that there are
                raise AdapterError(f"adapter {adapter.ref} is not published any more") from e
            if asked_for and found != asked_for:  # jobs of older versions do not say
                raise AdapterError(f"adapter {adapter.ref} is another one now ({found[:12]}, not {asked_for[:12]})")
        return VideoRequest(
            storage=self.storage.reference(),
            output=self.storage.child("serve").reference(),
            file=f"results/{attempt.file}",
            sampler=asked.sampler,
            adapters=tuple((adapter.ref, adapter.scale) for adapter in asked.adapters),
            image=image,
            prompt=asked.prompt,
            num_frames=asked.num_frames,
            height=asked.height,
            width=asked.width,
            state=_state_file(job.id),
            drop_state=False,  # of a lost lease, it is the next attempt's
            keep_every=self.config.engine.keep_every,
            told={"model": asked.model, "job": job.id, "request": asked.model_dump(mode="json")},
        )


def explain(error: Exception) -> tuple[ErrorCode, str]:
    """The error code and the message that the client sees. The details of a bug stay in the log."""
    if isinstance(error, OutOfMemory):
        return "oom", "the engine ran out of memory; ask for fewer frames or a smaller size"
    if isinstance(error, StorageFailed):
        return "internal", "the engine cannot reach its files; the reason is in its log"
    if isinstance(error, RankLost):
        return "rank_lost", _without_folders(str(error))
    if isinstance(error, MediaError | AdapterError | GenerationError):
        return "invalid", _without_folders(str(error))
    return "internal", f"the engine failed ({type(error).__name__}); the reason is in its log"


def _state_file(job_id: str) -> str:
    """Where a job's sampler state is kept, below the service's folder."""
    return f"states/{job_id}.safetensors"


def _without_folders(message: str) -> str:
    """Without the server's folders, which are no client's business: /a/b/c.json becomes c.json."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":,;()]+/)+", "", message)


def _node() -> str:
    """The node that this process is on; "" outside a cluster."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
