"""The job table: a state machine with leases and fencing tokens, in SQLite or any database of SQLAlchemy.

    queued --lease--> in_progress --complete--> completed
      ^                 |     |------fail-----> failed
      '--lease expired--'

A lease carries a token, which grows with every lease of the job. An engine's write names its token in the WHERE clause,
so an engine whose lease was given to another changes nothing. Several processes may use one database.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa

from cinesynth.errors import StorageError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA = 1
LEASE_WINDOW = 4
"""Number of the oldest queued jobs among which one whose adapter is loaded goes first."""
MAX_PASSED_OVER = 8
"""Most times that a job gives way to younger ones."""
RATE_JOBS = 20
"""Number of completed jobs that the predicted seconds are taken from."""

ErrorCode = Literal["oom", "rank_lost", "timeout", "cancelled", "invalid", "internal"]
Status = Literal["queued", "in_progress", "completed", "failed"]

_READS = "cinesynth_reads"
"""Execution option of connections that only read: they wait for no writer, and keep none waiting."""

metadata = sa.MetaData()
_schema = sa.Table("serve_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))
_jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), unique=True, nullable=False),
    sa.Column("owner", sa.String(80), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("adapter", sa.String(200)),
    sa.Column("image", sa.String(200), nullable=False),
    sa.Column("work", sa.Float, nullable=False),
    sa.Column("progress", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("passed_over", sa.Integer, nullable=False, default=0),
    sa.Column("token", sa.Integer, nullable=False, default=0),
    sa.Column("holder", sa.String(80)),
    sa.Column("lease_expires_at", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Column("result", sa.String(200)),
    sa.Column("sha256", sa.String(64)),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error_message", sa.String(2000)),
    # Ids of deleted rows are not used again: the queue's order is the order of creation.
    sqlite_autoincrement=True,
)


@dataclass(frozen=True)
class NewJob:
    """A validated request, and the file name of its first frame."""

    id: str
    owner: str
    request: dict[str, Any]
    adapter: str | None
    image: str
    work: float
    """Relative cost. The predicted seconds are proportional to it."""


@dataclass(frozen=True)
class Job:
    """One row, as clients and engines see it. Times are seconds since 1970."""

    id: str
    owner: str
    status: Status
    request: dict[str, Any]
    adapter: str | None
    image: str
    work: float
    progress: int
    attempts: int
    created_at: float
    started_at: float | None
    completed_at: float | None
    expires_at: float | None
    result: str | None
    sha256: str | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True)
class Lease:
    """The right to work on a job until `expires_at`; each heartbeat moves that time."""

    job: Job
    token: int
    expires_at: float


@dataclass(frozen=True)
class QueueFull:
    """The queue is at its cap. A place is likely to be free in `retry_after_s`."""

    retry_after_s: int


@dataclass(frozen=True)
class Backlog:
    """Unfinished work."""

    queued: int
    running: int
    seconds: float
    """Predicted for all queued jobs and for what remains of the running ones."""
    holders: frozenset[str]
    """Who holds the leases of the running ones."""


_JOB_COLUMNS = [_jobs.c[name] for name in Job.__dataclass_fields__]


class JobStore:
    """The jobs of one database. Thread-safe; methods block for a few milliseconds.

    Args:
        url: SQLAlchemy URL.
        lease_s: seconds that a lease lasts without a heartbeat.
        max_attempts: number of lost leases after which a job fails.
        queue_cap: most jobs in the queue.
        ttl_s: seconds that a finished job is kept.
        assumed_job_s: predicted seconds of a job, until some have completed.
        clock: seconds since 1970.

    Raises:
        StorageError: the database cannot be opened, or is of another schema version.
    """

    def __init__(
        self,
        url: str,
        lease_s: float = 30.0,
        max_attempts: int = 3,
        queue_cap: int = 100,
        ttl_s: float = 86_400.0,
        assumed_job_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease_s, self.max_attempts, self.queue_cap = lease_s, max_attempts, queue_cap
        self.ttl_s, self.assumed_job_s, self.clock = ttl_s, assumed_job_s, clock
        self.on_queued: Callable[[], object] = lambda: None
        """Called after a job was queued, in the thread that queued it."""
        try:
            self._engine = _connect(url)
            self._reads = self._engine.execution_options(**{_READS: True})
            with self._engine.begin() as db:
                metadata.create_all(db)
                versions = db.scalars(sa.select(_schema.c.version)).all()
                if not versions:
                    db.execute(sa.insert(_schema).values(version=SCHEMA))
        except (sa.exc.SQLAlchemyError, ImportError) as e:
            shown = url.rpartition("@")[2]  # without credentials
            raise StorageError(f"database {shown!r} cannot be opened: {e}") from e
        if versions and list(versions) != [SCHEMA]:
            raise StorageError(f"the job database is of schema {versions}, this version reads {SCHEMA}; use another")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # --- clients ---------------------------------------------------------------------------------------------

    def create(self, new: NewJob) -> Job | QueueFull:
        """Queue a job, unless the queue is full."""
        with self._engine.begin() as db:
            queued = db.scalar(sa.select(sa.func.count()).where(_jobs.c.status == "queued")) or 0
            if queued >= self.queue_cap:
                return QueueFull(max(1, round(self._seconds_per_work(db) * new.work or self.assumed_job_s)))
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

    # --- engines ---------------------------------------------------------------------------------------------

    def lease_next(self, holder: str, loaded: Collection[str | None] = ()) -> Lease | None:
        """Lease the best queued job, or None when there is none.

        The oldest job goes first. But among the oldest few, a job whose adapter is loaded goes before the others, until
        these have given way `MAX_PASSED_OVER` times.

        Args:
            holder: who takes it.
            loaded: adapters in the engine's memory. None stands for the base model without one.
        """
        with self._engine.begin() as db:
            oldest = db.execute(
                sa.select(_jobs.c.seq, _jobs.c.id, _jobs.c.adapter, _jobs.c.passed_over)
                .where(_jobs.c.status == "queued")
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
                    token=_jobs.c.token + 1,
                    attempts=_jobs.c.attempts + 1,
                    lease_expires_at=now + self.lease_s,
                    started_at=now,
                    progress=0,
                )
            )
            if taken.rowcount != 1:  # another process took it; only a database without a global write lock allows that
                return None
            older = [row.seq for row in oldest if row.seq < chosen.seq]
            if older:
                db.execute(sa.update(_jobs).where(_jobs.c.seq.in_(older)).values(passed_over=_jobs.c.passed_over + 1))
            row = db.execute(sa.select(*_JOB_COLUMNS, _jobs.c.token).where(_jobs.c.id == chosen.id)).one()
            return Lease(_job(row), row.token, now + self.lease_s)

    def heartbeat(self, job_id: str, token: int, progress: int) -> bool:
        """Renew the lease and record progress (percent). False when the lease is lost: the engine must stop."""
        values = {"lease_expires_at": self.clock() + self.lease_s, "progress": min(max(progress, 0), 99)}
        return self._write(job_id, token, values)

    def complete(self, job_id: str, token: int, result: str, sha256: str) -> bool:
        """Record the result's file name and hash. False when the lease is lost: nobody wants the result.

        It may be called again: an engine whose first call was not answered is told the same.
        """
        values = {"status": "completed", "progress": 100, "result": result, "sha256": sha256, "error_code": None}
        if self._write(job_id, token, {**values, **self._finished()}):
            return True
        ours = sa.select(_jobs.c.id).where(
            _jobs.c.id == job_id, _jobs.c.token == token, _jobs.c.status == "completed", _jobs.c.result == result
        )
        with self._reads.connect() as db:
            return db.execute(ours).one_or_none() is not None

    def fail(self, job_id: str, token: int, code: ErrorCode, message: str) -> bool:
        """End the job for good. False when the lease is lost."""
        return self._write(job_id, token, {**self._finished(), **_failure(code, message)})

    def give_up(self, job_id: str, token: int, code: ErrorCode, message: str) -> bool:
        """Queue the job of a lost attempt again, or fail it after the last attempt. False when the lease is lost."""
        with self._engine.begin() as db:
            row = db.execute(sa.select(_jobs.c.attempts).where(*_held(job_id, token))).one_or_none()
            return row is not None and self._requeue(db, job_id, token, row.attempts, code, message)

    # --- keeping order ---------------------------------------------------------------------------------------

    def extend(self) -> None:
        """Renew every lease: while the table was not served, no engine could."""
        with self._engine.begin() as db:
            running = sa.update(_jobs).where(_jobs.c.status == "in_progress")
            db.execute(running.values(lease_expires_at=self.clock() + self.lease_s))

    def expire(self) -> list[str]:
        """Take back the leases that ran out. Returns their holders."""
        late = _jobs.c.lease_expires_at < self.clock()
        return self._take_back(late, f"no sign of life from the engine for {self.lease_s:g} s")

    def release(self, holder: str, message: str) -> list[str]:
        """Take back the lease of a holder that is known to be gone."""
        return self._take_back(_jobs.c.holder == holder, message)

    def backlog(self) -> Backlog:
        """The unfinished jobs, and the seconds that one engine is predicted to need for them."""
        with self._reads.connect() as db:
            rate = self._seconds_per_work(db)
            rows = db.execute(
                sa.select(_jobs.c.status, _jobs.c.work, _jobs.c.progress, _jobs.c.holder).where(
                    _jobs.c.status.in_(["queued", "in_progress"])
                )
            ).all()
        seconds = sum((rate * r.work or self.assumed_job_s) * (1 - r.progress / 100) for r in rows)
        running = [r.holder for r in rows if r.status == "in_progress"]
        return Backlog(len(rows) - len(running), len(running), seconds, frozenset(running))

    def expired(self) -> list[Job]:
        """Finished jobs that were kept for `ttl_s`."""
        with self._reads.connect() as db:
            return [_job(r) for r in db.execute(sa.select(*_JOB_COLUMNS).where(_jobs.c.expires_at < self.clock()))]

    def ids(self) -> set[str]:
        """Of all jobs."""
        with self._reads.connect() as db:
            return set(db.scalars(sa.select(_jobs.c.id)))

    def forget(self, job_ids: Collection[str]) -> None:
        """Forget finished jobs, whoever owns them: the sweep calls this. Others stay."""
        with self._engine.begin() as db:
            db.execute(sa.delete(_jobs).where(_jobs.c.id.in_(job_ids), _jobs.c.expires_at.is_not(None)))

    # --- inside ----------------------------------------------------------------------------------------------

    def _write(self, job_id: str, token: int, values: dict[str, Any]) -> bool:
        with self._engine.begin() as db:
            return db.execute(sa.update(_jobs).where(*_held(job_id, token)).values(**values)).rowcount == 1

    def _finished(self) -> dict[str, Any]:
        now = self.clock()
        return {"completed_at": now, "expires_at": now + self.ttl_s, "holder": None, "lease_expires_at": None}

    def _take_back(self, condition: sa.ColumnElement[bool], message: str) -> list[str]:
        with self._engine.begin() as db:
            columns = (_jobs.c.id, _jobs.c.token, _jobs.c.attempts, _jobs.c.holder)
            rows = db.execute(sa.select(*columns).where(_jobs.c.status == "in_progress", condition)).all()
            for row in rows:
                self._requeue(db, row.id, row.token, row.attempts, "rank_lost", message)
            return [row.holder for row in rows]

    def _requeue(
        self, db: sa.Connection, job_id: str, token: int, attempts: int, code: ErrorCode, message: str
    ) -> bool:
        values: dict[str, Any] = {"status": "queued", "holder": None, "lease_expires_at": None, "progress": 0}
        if attempts >= self.max_attempts:
            values = {**self._finished(), **_failure(code, f"{message}; given up after {attempts} attempts")}
        logger.warning("%s attempt %d lost (%s): %s; now %s", job_id, attempts, code, message, values["status"])
        return db.execute(sa.update(_jobs).where(*_held(job_id, token)).values(**values)).rowcount == 1

    def _seconds_per_work(self, db: sa.Connection) -> float:
        """Median over the last completed jobs, as an engine's first job also loads the model. 0 when there are none."""
        recent = db.execute(
            sa.select(_jobs.c.work, (_jobs.c.completed_at - _jobs.c.started_at).label("seconds"))
            .where(_jobs.c.status == "completed")
            .order_by(_jobs.c.completed_at.desc())
            .limit(RATE_JOBS)
        ).all()
        return statistics.median(r.seconds / r.work for r in recent) if recent else 0.0


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

    async def __call__(
        self, operation: Callable[Concatenate[JobStore, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await asyncio.to_thread(operation, self._store, *args, **kwargs)


def _held(job_id: str, token: int) -> tuple[sa.ColumnElement[bool], ...]:
    return _jobs.c.id == job_id, _jobs.c.status == "in_progress", _jobs.c.token == token


def _failure(code: ErrorCode, message: str) -> dict[str, Any]:
    return {"status": "failed", "error_code": code, "error_message": message[:2000]}


def _job(row: Any) -> Job:
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})


def _connect(url: str) -> sa.Engine:
    engine = sa.create_engine(url)
    if engine.dialect.name != "sqlite":
        return engine

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, not at the first write
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # A transaction that writes takes the write lock at once: what it reads is still true when it writes.
        reads = connection.get_execution_options().get(_READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine
