"""The deployment "Store": alone opens the job table, and keeps as many engine calls outstanding as there is work.

Serve scales the engines by their outstanding requests. So demand is expressed as calls of `engine.run_next()`: one
per engine that the backlog needs. The engine that receives a call picks its job itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Collection
from typing import Any

from serve.config import ServeConfig
from serve.store import Backlog, ErrorCode, Job, JobStore, Lease, NewJob, QueueFull

logger = logging.getLogger(__name__)

TICK_S = 1.0
"""Leases are checked, and demand is computed, so often at least."""
SWEEP_S = 60.0


def open_store(config: ServeConfig) -> JobStore:
    """The job table of a configuration; its folders are made. Raises StorageError."""
    for folder in (config.inputs(), config.results()):
        folder.mkdir(parents=True, exist_ok=True)
    return JobStore(
        config.database_url(),
        lease_s=config.lease_s,
        max_attempts=config.max_attempts,
        queue_cap=config.queue_cap,
        ttl_s=config.ttl_s,
        assumed_job_s=config.assumed_job_s,
    )


def demand(backlog: Backlog, target_wait_s: float, max_replicas: int) -> int:
    """Engine calls that should be outstanding: ceil(predicted seconds of unfinished work / target wait).

    Never more than there are jobs or engines allowed; what remains of running jobs counts, so that a short job
    behind a long one gets an engine of its own.
    """
    wanted = max(math.ceil(backlog.seconds / target_wait_s), 1)
    return min(wanted, backlog.queued + backlog.running, max_replicas)


class Store:
    """One replica. Its methods are what the ingress and the engines call.

    Args:
        config: resolved configuration.
        engine: handle of the engine deployment.
    """

    def __init__(self, config: ServeConfig, engine: Any) -> None:
        self.config = config
        self.engine = engine
        self.jobs = open_store(config)
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._swept = 0.0
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        if self._keeper.done():
            raise RuntimeError("the dispatch loop has ended")

    # --- for the ingress -------------------------------------------------------------------------------------

    async def create(self, new: NewJob) -> Job | QueueFull:
        """Queue a job, unless the queue is full."""
        created = await asyncio.to_thread(self.jobs.create, new)
        self._wake.set()
        return created

    async def get(self, job_id: str) -> Job | None:
        return await asyncio.to_thread(self.jobs.get, job_id)

    async def backlog(self) -> Backlog:
        return await asyncio.to_thread(self.jobs.backlog)

    # --- for the engines -------------------------------------------------------------------------------------

    async def lease_next(self, holder: str, loaded: Collection[str | None]) -> Lease | None:
        if holder not in self._calls:
            return None  # a call from before a restart of this replica: nobody would notice its end
        return await asyncio.to_thread(self.jobs.lease_next, holder, loaded)

    async def heartbeat(self, job_id: str, token: int, progress: int) -> bool:
        return await asyncio.to_thread(self.jobs.heartbeat, job_id, token, progress)

    async def complete(self, job_id: str, token: int, result: str, sha256: str) -> bool:
        return await asyncio.to_thread(self.jobs.complete, job_id, token, result, sha256)

    async def fail(self, job_id: str, token: int, code: ErrorCode, message: str) -> bool:
        return await asyncio.to_thread(self.jobs.fail, job_id, token, code, message)

    async def give_up(self, job_id: str, token: int, code: ErrorCode, message: str) -> bool:
        return await asyncio.to_thread(self.jobs.give_up, job_id, token, code, message)

    # --- dispatch --------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                await self._tick()
            except Exception:
                logger.exception("dispatch failed; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)
            self._wake.clear()

    async def _tick(self) -> None:
        for holder in await asyncio.to_thread(self.jobs.expire):
            if call := self._calls.pop(holder, None):
                call.cancel()
        backlog = await self.backlog()
        # Leases of an earlier replica of this deployment have no call of ours, but keep an engine busy.
        outstanding = len(self._calls.keys() | backlog.holders)
        wanted = demand(backlog, self.config.target_wait_s, self.config.engine.max_replicas)
        for _ in range(wanted - outstanding):
            call_id = uuid.uuid4().hex
            self._calls[call_id] = asyncio.get_running_loop().create_task(self._call(call_id))
        await self._sweep()

    async def _call(self, call_id: str) -> None:
        try:
            outcome = await self.engine.run_next.remote(call_id)
            logger.info("call %s: %s", call_id, outcome)
        except Exception as e:
            logger.warning("call %s: the engine is gone: %s", call_id, e)
            await asyncio.to_thread(self.jobs.release, call_id, f"the engine was lost ({type(e).__name__})")
            await asyncio.sleep(TICK_S)  # an engine that fails at once must not be called in a tight loop
        finally:
            self._calls.pop(call_id, None)
            self._wake.set()

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._swept:
            return
        self._swept = now + min(SWEEP_S, self.config.ttl_s)
        await asyncio.to_thread(sweep, self.jobs, self.config)


def sweep(jobs: JobStore, config: ServeConfig) -> int:
    """Delete what has outlived its time, files first; returns the number of jobs."""
    over = jobs.expired()
    for job in over:
        (config.inputs() / job.image).unlink(missing_ok=True)
        if job.result:
            (config.results() / job.result).unlink(missing_ok=True)
    jobs.delete([job.id for job in over])
    # Files that belong to no job: left by a process that died before it could name or remove them.
    for folder in (config.inputs(), config.results()):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                old = path.stat().st_mtime < time.time() - config.ttl_s
                if old and jobs.get(path.name.partition(".")[0]) is None:
                    path.unlink()
    return len(over)
