"""The deployment "Dispatcher": it alone opens the job table, and it keeps as many engine calls outstanding as there
is work.

Serve scales the engines by their outstanding requests. So the Dispatcher makes one call of `engine.run_next()` for each
engine that the backlog needs. The engine that receives a call picks its job itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate

from serve.config import ServeConfig
from serve.jobs import Backlog, JobStore, Lease, LocalJobs, P, T
from serve.nodes import node_lives
from serve.records import ServedModel
from serve.sweep import Sweeper
from serve.tables import record_table
from serve.telemetry import JobTelemetry, count_restart, show_queue

logger = logging.getLogger(__name__)

DISPATCHER = "Dispatcher"
"""The deployment's name."""
TICK_S = 1.0
"""Most seconds between two checks of leases and demand."""
JUDGE_S = 4.0
"""Most seconds that it may take to find out whether a node lives."""
FOLLOWED_S = 600.0
"""Seconds after which a deployment that is followed by another one answers no more."""
SWEEP_S = 60.0
"""Seconds between two sweeps for jobs and files whose time is over."""


def open_store(config: ServeConfig) -> JobStore:
    """Make the folders of a configuration, open its job table and record it there. Raises StorageError."""
    for folder in (config.inputs(), config.results(), config.states()):
        folder.mkdir(parents=True, exist_ok=True)
    store = JobStore(
        config.database_url(),
        lease_s=config.lease_s,
        max_attempts=config.max_attempts,
        max_leases=config.max_leases,
        queue_cap=config.queue_cap,
        ttl_s=config.ttl_s,
        assumed_job_s=config.assumed_job_s,
    )
    record_table(config, store)
    return store


def demand(backlog: Backlog, target_wait_s: float, max_replicas: int) -> int:
    """Number of engine calls that should be outstanding: ceil(predicted seconds of unfinished work / target wait).

    It is never more than the jobs that there are, or the engines that are allowed. The rest of a running job counts as
    unfinished work, so a short job behind a long one gets an engine of its own.
    """
    wanted = max(math.ceil(backlog.seconds / target_wait_s), 1)
    return min(wanted, backlog.queued + backlog.running, max_replicas)


class Dispatcher:
    """One replica. The ingress and the engines call it.

    Args:
        config: resolved configuration.
        engine: handle of the engine deployment.
        lives: whether the node of an engine that was lost still lives. It may block.
        base_sha256: hash of the served transformer; "": not known.
    """

    def __init__(
        self,
        config: ServeConfig,
        engine: Any,
        lives: Callable[[str], bool] = node_lives,
        base_sha256: str = "",
    ) -> None:
        self.config = config
        self.engine = engine
        self._lives = lives
        # Threads of their own: where the cluster does not answer, the job table still does.
        self._judges = ThreadPoolExecutor(4, thread_name_prefix="judge")
        self.store = open_store(config)
        self.store.extend()
        self._served, self._since = ServedModel(config.model_name(), base_sha256), self.store.clock()
        self.store.observer = JobTelemetry()
        self.jobs = LocalJobs(self.store)
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._holding: dict[str, str | None] = {}
        """Nodes of the engines that work on a call and hold a lease, or are about to."""
        self._aside: set[str] = set()
        """Calls whose engines have no group at the moment."""
        self._failed = False
        """The last tick failed, as it does while the database takes no writes: heartbeats failed too."""
        self._clocks = _clocks()
        self._wake = asyncio.Event()
        self._sweeper, self._swept = Sweeper(self.store, config), 0.0
        loop = asyncio.get_running_loop()
        self.store.on_queued = lambda: loop.call_soon_threadsafe(self._wake.set)
        self._keeper = loop.create_task(self._keep())

    def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        if self._keeper.done():
            raise RuntimeError("the dispatch loop has ended")

    async def run(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Run the operation of `JobStore` that has this name; callers use `DispatcherJobs`, which is typed."""
        return await self.jobs(getattr(JobStore, operation), *args, **kwargs)

    async def lease_next(
        self,
        call_id: str,
        node: str | None,
        loaded: Collection[str | None],
        served: ServedModel | None = None,
    ) -> Lease | None:
        """Lease a job to the engine on `node` that works on the call `call_id`, as `JobStore.lease_next` does.

        A call that began before this replica restarted gets no job: nobody would notice its end.
        """
        if call_id not in self._calls:
            return None
        self._aside.discard(call_id)
        self._holding[call_id] = node  # first: a call that is about to hold a lease is not withdrawn
        try:
            lease = await self.jobs(JobStore.lease_next, call_id, node, loaded, served)
        except BaseException:
            self._holding.pop(call_id, None)
            raise
        if lease is None:
            self._holding.pop(call_id, None)
        return lease

    async def step_aside(self, call_id: str) -> None:
        """The engine that works on a call makes its group anew and leases nothing meanwhile: another may be called."""
        if call_id in self._calls:
            count_restart("group")
            self._aside.add(call_id)
            self._wake.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._tick()
            except Exception:
                logger.exception("dispatch failed; trying again")
                self._failed = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)
            self._wake.clear()

    async def _tick(self) -> None:
        if self._was_away() or self._failed:
            await self.jobs(JobStore.extend)
            self._failed = False
        silent = list(await self.jobs(JobStore.silent_nodes))
        for node, own in zip(silent, await asyncio.gather(*map(self._own_fault, silent)), strict=True):
            for holder in await self.jobs(JobStore.expire, node, own, list(self._calls)):
                if call := self._calls.pop(holder, None):
                    call.cancel()
        # While one deployment follows another, the table has younger jobs of the other's model, which are not lost.
        before = max(self._since, self.store.clock() - FOLLOWED_S)
        await self.jobs(JobStore.fail_unserved, self._served, before)
        backlog = await self.jobs(JobStore.backlog)
        wanted = demand(backlog, self.config.target_wait_s, self.config.engine.max_replicas)
        # Only calls of this replica count: Serve knows of no others, and would scale away an engine that works on the
        # lease of an earlier replica's.
        for _ in range(wanted - len(self._calls) + len(self._aside)):
            call_id = uuid.uuid4().hex
            self._calls[call_id] = asyncio.get_running_loop().create_task(self._call(call_id))
        spare = [call_id for call_id in self._calls if call_id not in self._holding and call_id not in self._aside]
        for call_id in spare[: max(0, len(self._calls) - len(self._aside) - wanted)]:
            self._calls.pop(call_id).cancel()
        show_queue(backlog, await self.jobs(JobStore.oldest_wait), len(self._calls))
        await self._sweep()

    async def _own_fault(self, node: str | None) -> bool:
        """Whether an engine on `node` was lost by itself, or by its job: the node is not known to be lost, too."""
        if not node:
            return True
        try:
            asked = asyncio.get_running_loop().run_in_executor(self._judges, self._lives, node)
            return await asyncio.wait_for(asked, JUDGE_S)
        except Exception as e:
            logger.warning("node %s: nobody says whether it lives (%s); taken for alive", node, type(e).__name__)
            return True

    def _was_away(self) -> bool:
        """Whether this process did not run for a while, or the clock was set.

        Then heartbeats wait to be read, or leases seem to have run out that have not.
        """
        before, self._clocks = self._clocks, _clocks()
        steady, wall = (now - then for now, then in zip(self._clocks, before, strict=True))
        limit = max(self.config.lease_s / 2, 5 * TICK_S)
        return steady > limit or abs(wall - steady) > limit

    async def _call(self, call_id: str) -> None:
        try:
            response = self.engine.run_next.remote(call_id)
            try:
                outcome = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            logger.info("call %s: %s", call_id, outcome)
            if outcome == "empty":  # the work is another's: a new call at once would find none either
                await asyncio.sleep(TICK_S)
        except Exception as e:
            logger.warning("call %s: the engine is gone: %s", call_id, e)
            message, own = f"the engine was lost ({type(e).__name__})", True
            if _taken_away(e):
                message, own = "the engine was taken away by Serve", False
            elif not await self._own_fault(self._holding.get(call_id)):
                message, own = f"the engine's node was lost ({type(e).__name__})", False
            if not _taken_away(e):
                count_restart("replica")
            await self.jobs(JobStore.release, call_id, message, own)
            await asyncio.sleep(TICK_S)  # do not call an engine that fails at once in a tight loop
        finally:
            self._calls.pop(call_id, None)
            self._holding.pop(call_id, None)
            self._aside.discard(call_id)
            self._wake.set()

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._swept:
            return
        self._swept = now + min(SWEEP_S, self.config.ttl_s)
        try:
            await asyncio.to_thread(self._sweeper.sweep)
        except Exception:  # it says nothing of heartbeats: no lease is renewed for it
            logger.exception("the sweep failed; trying again")


class DispatcherJobs:
    """`Jobs` of the Dispatcher's table, through the Dispatcher's deployment handle."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher

    async def __call__(
        self, operation: Callable[Concatenate[JobStore, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._dispatcher.run.remote(operation.__name__, *args, **kwargs)


def _taken_away(error: Exception) -> bool:
    """Whether an engine's end is of Serve's making: it drained for too long, or did not answer health checks."""
    return "ray.kill" in str(error)


def _clocks() -> tuple[float, float]:
    """(seconds that only run forward, seconds since 1970)"""
    return time.monotonic(), time.time()
