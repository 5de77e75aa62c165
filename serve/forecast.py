"""How long the unfinished jobs will take: one arithmetic for the number of engines and for what clients are told."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from serve.database import jobs as _jobs
from serve.records import Backlog, Place

RATE_JOBS = 20
"""Number of completed jobs that the predicted seconds are taken from."""

UNFINISHED = _jobs.c.status.in_(["queued", "in_progress"])
"""Rows of jobs that are queued or running."""


@dataclass(frozen=True)
class Unfinished:
    """A queued job (no holder) or a running one, and the seconds that one engine is predicted to need for its rest."""

    id: str
    holder: str | None
    seconds: float


def seconds_per_work(db: sa.Connection) -> float:
    """Median over the last completed jobs, as an engine's first job may also load an adapter. 0 when there are none.

    A job's seconds are those of all its leases: an engine that is taken away leaves a state, and the next one goes on
    from it. But an attempt that was lost by a crash or a hang says nothing of what a job takes (it may have hung for
    minutes), so jobs that had one are left out.
    """
    recent = db.execute(
        sa.select(_jobs.c.work, _jobs.c.seconds)
        .where(_jobs.c.status == "completed", _jobs.c.attempts == 0, _jobs.c.work > 0)
        .order_by(_jobs.c.completed_at.desc())
        .limit(RATE_JOBS)
    ).all()
    return statistics.median(row.seconds / row.work for row in recent) if recent else 0.0


def predicted_s(rate: float, work: float, assumed_job_s: float) -> float:
    """Seconds of a job of some work, or the assumed ones where no rate is known."""
    return rate * work or assumed_job_s


def unfinished_jobs(db: sa.Connection, assumed_job_s: float) -> list[Unfinished]:
    """All jobs that are queued or running, the oldest first."""
    rate = seconds_per_work(db)
    rows = db.execute(
        sa.select(_jobs.c.id, _jobs.c.holder, _jobs.c.work, _jobs.c.attempt_progress)
        .where(UNFINISHED)
        .order_by(_jobs.c.seq)
    ).all()
    # What an earlier attempt had done does not count: this one may have begun anew.
    return [
        Unfinished(r.id, r.holder, predicted_s(rate, r.work, assumed_job_s) * (1 - r.attempt_progress / 100))
        for r in rows
    ]


def backlog_of(unfinished: Sequence[Unfinished]) -> Backlog:
    """The unfinished work, and the seconds that one engine would need for it."""
    holders = [job.holder for job in unfinished if job.holder is not None]
    seconds = sum(job.seconds for job in unfinished)
    return Backlog(len(unfinished) - len(holders), len(holders), seconds, frozenset(holders))


def place_of(job_id: str, unfinished: Sequence[Unfinished]) -> Place | None:
    """Where a job stands among the unfinished ones; None where it is not among them.

    As many engines are reckoned with as work now (at least one), each of which takes the oldest job when it becomes
    free. Engines that are added meanwhile, and jobs that go first for their adapter, are not foreseen.
    """
    running = [job for job in unfinished if job.holder is not None]
    for job in running:
        if job.id == job_id:
            return Place(0, job.seconds)
    free_in = [job.seconds for job in running] or [0.0]
    heapq.heapify(free_in)
    for position, job in enumerate((job for job in unfinished if job.holder is None), start=1):
        done_in = heapq.heappop(free_in) + job.seconds
        if job.id == job_id:
            return Place(position, done_in)
        heapq.heappush(free_in, done_in)
    return None
