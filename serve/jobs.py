"""The job table: a state machine with leases and fencing tokens, in SQLite or any database of SQLAlchemy.

    queued --lease--> in_progress --complete--> completed
      ^                 |     |------fail-----> failed
      |                 |                         ^
      '---lease lost----'----- too many times ----'

A lease carries a token, which grows with every lease of the job. An engine's write names its token in the WHERE clause,
so an engine whose lease was given to another changes nothing. Several processes may use one database.

A lease that is lost counts against the job where nothing but the job, or its engine, can be the reason; what befell the
engine from outside (its node was lost, it was taken away) does not. A job fails after `max_attempts` losses of its own,
as it may be what kills the engines, and after `max_leases` in all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa

from serve.database import jobs as _jobs
from serve.database import open_database
from serve.database import table as _table
from serve.forecast import UNFINISHED, backlog_of, place_of, predicted_s, seconds_per_work, unfinished_jobs
from serve.records import Backlog, ErrorCode, Job, KeyReused, Lease, NewJob, Page, Place, QueueFull, ServedModel
from serve.records import Status as Status

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LEASE_WINDOW = 4
"""Number of the oldest queued jobs among which one whose adapter is loaded goes first."""
WAITED_S = 1.0
"""Seconds of waiting for the write lock after which no lease is called late: heartbeats waited for it too."""
THREADS = 64
"""Operations that wait for the database at once. Writes that wait for its lock are to keep no read waiting."""
MAX_PASSED_OVER = 8
"""Most times that a job gives way to younger ones."""
_JOB_COLUMNS = [_jobs.c[name] for name in Job.__dataclass_fields__]
_asked_name = sa.func.coalesce(_jobs.c.request["model"].as_string(), "")
_asked_base = sa.func.coalesce(_jobs.c.request["base_sha256"].as_string(), "")
"""The model that a job was asked of; the hash is missing in jobs of older versions."""
_LOSS_COLUMNS = (_jobs.c.id, _jobs.c.token, _jobs.c.attempts, _jobs.c.holder, _jobs.c.node)


class Observer:
    """Is told what becomes of jobs, in the thread that writes it. This one looks away."""

    def leased(self, job: Job, waited_s: float | None) -> None:
        """An engine took it. `waited_s`: seconds until this first lease; None: it is not the first."""

    def completed(self, job: Job) -> None:
        """Its video is there."""

    def failed(self, code: ErrorCode) -> None:
        """A job failed for good."""

    def lost(self, code: ErrorCode) -> None:
        """A lease ended without an outcome."""


class JobStore:
    """The jobs of one database. Thread-safe; methods block for a few milliseconds.

    Args:
        url: SQLAlchemy URL.
        lease_s: seconds that a lease lasts without a heartbeat.
        max_attempts: number of losses of its own after which a job fails.
        max_leases: number of leases after which a job fails, whatever they were lost by.
        queue_cap: most jobs in the queue.
        ttl_s: seconds that a finished job is kept.
        assumed_job_s: predicted seconds of a job, until some have completed.
        clock: seconds since 1970.

    Raises:
        StorageError: the database cannot be opened, is of a newer version, or is SQLite on a network file system.
    """

    def __init__(
        self,
        url: str,
        lease_s: float = 30.0,
        max_attempts: int = 3,
        max_leases: int = 10,
        queue_cap: int = 100,
        ttl_s: float = 86_400.0,
        assumed_job_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease_s, self.max_attempts, self.max_leases, self.queue_cap = lease_s, max_attempts, max_leases, queue_cap
        self.ttl_s, self.assumed_job_s, self.clock = ttl_s, assumed_job_s, clock
        self.on_queued: Callable[[], object] = lambda: None
        """Called after a job was queued, in the thread that queued it."""
        self.observer = Observer()
        self._engine, self._reads = open_database(url)
        with self._reads.connect() as db:
            self.table_id: str = db.execute(sa.select(_table.c.id)).scalar_one()
            """Of the table, wherever its database is moved to."""

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._reads.dispose()

    # --- clients ---------------------------------------------------------------------------------------------

    def create(self, new: NewJob) -> Job | QueueFull | KeyReused:
        """Queue a job, unless the queue is full.

        A request that comes again under its idempotency key gets the job that it made the first time, even while the
        queue is full. Another request under that key is refused.
        """
        try:
            return self._create(new)
        except sa.exc.IntegrityError:
            # The same request came in between; only a database without a global write lock allows that.
            return self._create(new)

    def _create(self, new: NewJob) -> Job | QueueFull | KeyReused:
        with self._engine.begin() as db:
            earlier = _find(db, new.owner, new.idempotency_key)
            if earlier is not None:
                return earlier if earlier.body_sha256 == new.body_sha256 else KeyReused(earlier.id)
            queued = db.scalar(sa.select(sa.func.count()).where(_jobs.c.status == "queued")) or 0
            if queued >= self.queue_cap:
                return QueueFull(max(1, round(predicted_s(seconds_per_work(db), new.work, self.assumed_job_s))))
            values = {**new.__dict__, "status": "queued", "created_at": self.clock()}
            db.execute(sa.insert(_jobs).values(**values))
            job = _job(db.execute(sa.select(*_JOB_COLUMNS).where(_jobs.c.id == new.id)).one())
        self.on_queued()
        return job

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        with self._reads.connect() as db:
            row = db.execute(sa.select(*_JOB_COLUMNS).where(_jobs.c.id == job_id)).one_or_none()
        return None if row is None else _job(row)

    def find(self, owner: str, idempotency_key: str) -> Job | None:
        """The owner's job that was made under an idempotency key, or None. A key lives as long as its job."""
        with self._reads.connect() as db:
            return _find(db, owner, idempotency_key)

    def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> Page | None:
        """Up to `limit` of the owner's jobs, those that follow `after`. None: `after` is no job of the owner."""
        order = _jobs.c.seq.desc() if newest_first else _jobs.c.seq.asc()
        jobs = sa.select(*_JOB_COLUMNS).where(_jobs.c.owner == owner).order_by(order).limit(limit + 1)
        with self._reads.connect() as db:
            if after is not None:
                seq = db.scalar(sa.select(_jobs.c.seq).where(_jobs.c.id == after, _jobs.c.owner == owner))
                if seq is None:
                    return None
                jobs = jobs.where(_jobs.c.seq < seq if newest_first else _jobs.c.seq > seq)
            rows = db.execute(jobs).all()
        return Page([_job(row) for row in rows[:limit]], len(rows) > limit)

    def delete(self, job_id: str, owner: str) -> Job | None:
        """Forget a job, whatever its status; returns it as it was. None: the owner has no such job.

        The engine of a running one loses its lease: it stops at the next step, and unlinks what it made.
        """
        owned = (_jobs.c.id == job_id, _jobs.c.owner == owner)
        with self._engine.begin() as db:
            row = db.execute(sa.select(*_JOB_COLUMNS).where(*owned)).one_or_none()
            if row is not None:
                db.execute(sa.delete(_jobs).where(*owned))
        return None if row is None else _job(row)

    def place(self, job_id: str) -> Place | None:
        """Where a job stands, or None for one that is finished or unknown."""
        with self._reads.connect() as db:
            return place_of(job_id, unfinished_jobs(db, self.assumed_job_s))

    # --- engines ---------------------------------------------------------------------------------------------

    def lease_next(
        self,
        holder: str,
        node: str | None = None,
        loaded: Collection[str | None] = (),
        served: ServedModel | None = None,
    ) -> Lease | None:
        """Lease the best queued job, or None when there is none.

        The oldest job goes first. But among the oldest few, a job whose adapter is loaded goes before the others, until
        these have given way `MAX_PASSED_OVER` times.

        Args:
            holder: who takes it.
            node: where the holder runs; whether that node lives tells later whose fault a lost lease was.
            loaded: adapters in the engine's memory. None stands for the base model without one.
            served: the engine's model; jobs of another one are left. Default: any job is taken.
        """
        queued = [_jobs.c.status == "queued"] + ([] if served is None else [_asks_for(served)])
        with self._engine.begin() as db:
            oldest = db.execute(
                sa.select(_jobs.c.seq, _jobs.c.id, _jobs.c.adapter, _jobs.c.passed_over)
                .where(*queued)
                .order_by(_jobs.c.seq)
                .limit(LEASE_WINDOW)
            ).all()
            if not oldest:
                return None
            chosen = oldest[0]
            if chosen.passed_over < MAX_PASSED_OVER:
                chosen = next((row for row in oldest if row.adapter in loaded), chosen)
            now = self.clock()
            taken = db.execute(
                sa.update(_jobs)
                .where(_jobs.c.id == chosen.id, _jobs.c.status == "queued")
                .values(
                    status="in_progress",
                    holder=holder,
                    node=node,
                    token=_jobs.c.token + 1,
                    leased_at=now,
                    lease_expires_at=now + self.lease_s,
                    started_at=sa.func.coalesce(_jobs.c.started_at, now),
                    attempt_progress=0,
                )
            )
            if taken.rowcount != 1:  # another process took it; only a database without a global write lock allows that
                return None
            older = [row.seq for row in oldest if row.seq < chosen.seq]
            if older:
                db.execute(sa.update(_jobs).where(_jobs.c.seq.in_(older)).values(passed_over=_jobs.c.passed_over + 1))
            row = db.execute(sa.select(*_JOB_COLUMNS, _jobs.c.token).where(_jobs.c.id == chosen.id)).one()
        job = _job(row)
        self.observer.leased(job, max(0.0, now - job.created_at) if row.token == 1 else None)
        return Lease(job, row.token, now + self.lease_s)

    def heartbeat(self, job_id: str, token: int, progress: int) -> bool:
        """Renew the lease and record progress (percent). False when the lease is lost: the engine must stop.

        Heartbeats may overtake each other, and an attempt may begin anew: clients never see progress go back.
        """
        percent = min(max(progress, 0), 99)
        values = {
            "progress": _at_least(_jobs.c.progress, percent),
            "attempt_progress": _at_least(_jobs.c.attempt_progress, percent),
        }
        with self._engine.begin() as db:  # the lease lasts from when it is written, which another writer may delay
            return _change(db, job_id, token, {**values, "lease_expires_at": self.clock() + self.lease_s})

    def complete(
        self, job_id: str, token: int, result: str, sha256: str, timings: dict[str, float] | None = None
    ) -> bool:
        """Record the result's file name and hash, and its seconds by stage.

        False when the lease is lost: nobody wants the result. It may be called again: an engine whose first call was
        not answered is told the same.
        """
        values = {"status": "completed", "progress": 100, "result": result, "sha256": sha256, "timings": timings}
        if self._write(job_id, token, {**values, **self._finished()}):
            if (job := self.get(job_id)) is not None:  # it may be deleted already
                self.observer.completed(job)
            return True
        ours = sa.select(_jobs.c.id).where(
            _jobs.c.id == job_id, _jobs.c.token == token, _jobs.c.status == "completed", _jobs.c.result == result
        )
        with self._reads.connect() as db:
            return db.execute(ours).one_or_none() is not None

    def fail(self, job_id: str, token: int, code: ErrorCode, message: str) -> bool:
        """End the job for good. False when the lease is lost."""
        held = self._write(job_id, token, {**self._finished(), **_failure(code, message)})
        if held:
            self.observer.failed(code)
        return held

    def give_up(self, job_id: str, token: int, code: ErrorCode, message: str, own: bool = True) -> bool:
        """Queue the job of a lost attempt again, or fail it after the last one. False when the lease is lost.

        Args:
            job_id: of the job.
            token: of the lease.
            code: what the job fails with, if it fails.
            message: what happened.
            own: whether it counts against the job. An engine that is taken away says no.
        """
        with self._engine.begin() as db:
            row = db.execute(sa.select(*_LOSS_COLUMNS).where(*_held(job_id, token))).one_or_none()
            return row is not None and self._lose(db, row, code, message, own)

    def fail_unserved(self, served: ServedModel, before: float) -> int:
        """Fail the queued jobs from before a time (seconds since 1970) that ask for another model than the served one;
        returns their number."""
        unserved = (_jobs.c.status == "queued", _jobs.c.created_at < before, sa.not_(_asks_for(served)))
        with self._reads.connect() as db:
            rows = db.execute(
                sa.select(_jobs.c.id, _asked_name.label("name"), _asked_base.label("base")).where(*unserved)
            ).all()
        failed = 0
        for row in rows:
            values = {**self._finished(), **_failure("invalid", _not_served(ServedModel(row.name, row.base), served))}
            with self._engine.begin() as db:
                written = db.execute(sa.update(_jobs).where(_jobs.c.id == row.id, *unserved).values(**values)).rowcount
            if written:
                failed += 1
                logger.warning("%s: %s", row.id, values["error_message"])
                self.observer.failed("invalid")
        return failed

    # --- keeping order ---------------------------------------------------------------------------------------

    def extend(self) -> None:
        """Renew every lease: while the table was not served, no engine could."""
        with self._engine.begin() as db:
            self._extend(db)

    def _extend(self, db: sa.Connection) -> None:
        running = sa.update(_jobs).where(_jobs.c.status == "in_progress")
        db.execute(running.values(lease_expires_at=self.clock() + self.lease_s))

    def silent_nodes(self) -> set[str | None]:
        """Where the leases are that ran out. None stands for those of engines that told no node."""
        with self._reads.connect() as db:
            return set(db.scalars(sa.select(_jobs.c.node).where(_jobs.c.status == "in_progress", self._ran_out())))

    def expire(self, node: str | None, own: bool, watched: Collection[str] | None = None) -> list[str]:
        """Take back those leases of a node that ran out; returns their holders.

        Args:
            node: that the leases are on.
            own: it counts against the jobs.
            watched: holders whose end would have been noticed. What befell the others nobody knows, and it counts
                against no job. Default: all are.
        """
        message = f"no sign of life from the engine for {self.lease_s:g} s"
        asked = time.monotonic()
        with self._engine.begin() as db:
            if time.monotonic() - asked > WAITED_S:
                self._extend(db)
                return []
            late = sa.and_(_jobs.c.node.is_not_distinct_from(node), self._ran_out())
            return self._take_back(db, late, message, own, watched)

    def release(self, holder: str, message: str, own: bool = True) -> list[str]:
        """Take back the lease of a holder that is known to be gone. `own`: it counts against the job."""
        with self._engine.begin() as db:
            return self._take_back(db, _jobs.c.holder == holder, message, own)

    def predicted(self, work: float) -> float:
        """Seconds that one engine is predicted to need for some work."""
        with self._reads.connect() as db:
            return predicted_s(seconds_per_work(db), work, self.assumed_job_s)

    def backlog(self) -> Backlog:
        """The unfinished jobs, and the seconds that one engine is predicted to need for them."""
        with self._reads.connect() as db:
            return backlog_of(unfinished_jobs(db, self.assumed_job_s))

    def oldest_wait(self) -> float:
        """Seconds that the oldest queued job is in the table; 0 where none is queued."""
        oldest = sa.select(sa.func.min(_jobs.c.created_at)).where(_jobs.c.status == "queued")
        with self._reads.connect() as db:
            since = db.scalar(oldest)
        return 0.0 if since is None else max(0.0, self.clock() - since)

    def expired(self) -> set[str]:
        """Ids of the finished jobs that were kept for `ttl_s`."""
        with self._reads.connect() as db:
            return set(db.scalars(sa.select(_jobs.c.id).where(_jobs.c.expires_at < self.clock())))

    def ids(self) -> set[str]:
        """Of all jobs."""
        with self._reads.connect() as db:
            return set(db.scalars(sa.select(_jobs.c.id)))

    def unfinished_ids(self) -> set[str]:
        """Of the jobs that are queued or running."""
        with self._reads.connect() as db:
            return set(db.scalars(sa.select(_jobs.c.id).where(UNFINISHED)))

    def forget(self, job_ids: Collection[str]) -> None:
        """Forget finished jobs, whoever owns them: the sweep calls this. Others stay."""
        with self._engine.begin() as db:
            db.execute(sa.delete(_jobs).where(_jobs.c.id.in_(job_ids), _jobs.c.expires_at.is_not(None)))

    # --- inside ----------------------------------------------------------------------------------------------

    def _write(self, job_id: str, token: int, values: dict[str, Any]) -> bool:
        with self._engine.begin() as db:
            return _change(db, job_id, token, values)

    def _ran_out(self) -> sa.ColumnElement[bool]:
        return _jobs.c.lease_expires_at < self.clock()

    def _leased_no_more(self) -> dict[str, Any]:
        held = self.clock() - _jobs.c.leased_at
        return {
            "holder": None,
            "node": None,
            "leased_at": None,
            "lease_expires_at": None,
            "attempt_progress": 0,
            # A clock that was set back takes nothing off.
            "seconds": _jobs.c.seconds + sa.case((held > 0, held), else_=0.0),
        }

    def _finished(self) -> dict[str, Any]:
        now = self.clock()
        return {**self._leased_no_more(), "completed_at": now, "expires_at": now + self.ttl_s}

    def _take_back(
        self,
        db: sa.Connection,
        condition: sa.ColumnElement[bool],
        message: str,
        own: bool,
        watched: Collection[str] | None = None,
    ) -> list[str]:
        rows = db.execute(sa.select(*_LOSS_COLUMNS).where(_jobs.c.status == "in_progress", condition)).all()
        for row in rows:
            self._lose(db, row, "rank_lost", message, own and (watched is None or row.holder in watched))
        return [row.holder for row in rows]

    def _lose(self, db: sa.Connection, row: Any, code: ErrorCode, message: str, own: bool) -> bool:
        """End a lease without an outcome: its job is queued again at its place, or fails when it had its chances."""
        attempts = row.attempts + (1 if own else 0)
        values: dict[str, Any] = {**self._leased_no_more(), "status": "queued"}
        chances = None
        if own and attempts >= self.max_attempts:
            chances = f"{attempts} attempts"
        elif row.token >= self.max_leases:
            chances = f"{row.token} engines had begun it, of which {attempts} failed by themselves"
        if chances is not None:
            values = {**self._finished(), **_failure(code, f"{message[:1800]}; given up after {chances}")}
        logger.warning(
            "%s lost lease %d on node %s (%s, %s): %s; now %s",
            *(row.id, row.token, row.node, code, "its own" if own else "not its own", message, values["status"]),
        )
        held = _change(db, row.id, row.token, {**values, "attempts": attempts})
        if held:
            self.observer.lost(code)
            if chances is not None:
                self.observer.failed(code)
        return held


class Jobs(Protocol):
    """Runs an operation of the job table, wherever the table is: `await jobs(JobStore.get, job_id)`.

    An operation is a method of `JobStore` and is written there only: callers name the method, and what lies between
    them and the table passes on its name and arguments.
    """

    async def __call__(
        self, operation: Callable[Concatenate[JobStore, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...


class LocalJobs:
    """`Jobs` of a table that this process has open; a thread waits for the database."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="jobs")

    async def __call__(
        self, operation: Callable[Concatenate[JobStore, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        doing = partial(operation, self._store, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, doing)


def _find(db: sa.Connection, owner: str, idempotency_key: str | None) -> Job | None:
    if idempotency_key is None:
        return None
    under = (_jobs.c.owner == owner, _jobs.c.idempotency_key == idempotency_key)
    row = db.execute(sa.select(*_JOB_COLUMNS).where(*under)).one_or_none()
    return None if row is None else _job(row)


def _asks_for(served: ServedModel) -> sa.ColumnElement[bool]:
    """Whether a job was asked of a model: of its weights, or of its name where the weights are not known."""
    by_name = _asked_name.in_(["", served.name])
    if not served.base_sha256:
        return by_name
    return sa.or_(_asked_base == served.base_sha256, sa.and_(_asked_base == "", by_name))


def _not_served(asked: ServedModel, served: ServedModel) -> str:
    if asked.name != served.name:
        return f"it was asked of the model {asked.name!r}, and {served.name!r} is served now; send the request again"
    weights = f"({served.base_sha256[:12]}, not {asked.base_sha256[:12]})"
    return f"the model {served.name!r} has other weights now {weights}; send the request again"


def _at_least(column: sa.Column[int], value: int) -> sa.ColumnElement[int]:
    return sa.case((column < value, value), else_=column)


def _change(db: sa.Connection, job_id: str, token: int, values: dict[str, Any]) -> bool:
    """Write to the row of a lease. False when the lease is lost."""
    return db.execute(sa.update(_jobs).where(*_held(job_id, token)).values(**values)).rowcount == 1


def _held(job_id: str, token: int) -> tuple[sa.ColumnElement[bool], ...]:
    return _jobs.c.id == job_id, _jobs.c.status == "in_progress", _jobs.c.token == token


def _failure(code: ErrorCode, message: str) -> dict[str, Any]:
    return {"status": "failed", "error_code": code, "error_message": message[:2000]}


def _job(row: Any) -> Job:
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})
