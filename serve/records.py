"""What the job table takes and gives: jobs, leases and what is said about the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cinesynth.errors import StorageError

ErrorCode = Literal["oom", "rank_lost", "timeout", "invalid", "internal"]
Status = Literal["queued", "in_progress", "completed", "failed"]


class DatabaseFull(StorageError):
    """The job database has no room for a write, which was not done."""


@dataclass(frozen=True)
class ServedModel:
    """What an engine makes videos with. Two are the same where their weights are, whatever their names."""

    name: str
    """As clients see it."""
    base_sha256: str = ""
    """Hash of the transformer; "": not known, and names are compared."""


@dataclass(frozen=True)
class NewJob:
    """A validated request, and the file name of its first frame."""

    id: str
    owner: str
    request: dict[str, Any]
    adapter: str | None
    image: str
    work: float
    """Operations of its forward passes, which the predicted seconds are proportional to; 0: not known."""
    idempotency_key: str | None = None
    """The owner's name for the request: a second job of this name is not made while the first one is kept."""
    body_sha256: str | None = None
    """Tells whether a request of the same name is the same one."""
    remixed_from: str | None = None


@dataclass(frozen=True)
class Job:
    """One row, as clients and engines see it. Times are seconds since 1970.

    Attributes:
        progress: percent, the highest that was told of any attempt.
        attempts: leases that were lost for a reason of the job's own, or of its engine's.
        started_at: when it was leased for the first time.
        seconds: that engines held it, over all leases that have ended.
        timings: of a completed one, seconds of its last attempt by stage.
    """

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
    remixed_from: str | None = None
    body_sha256: str | None = None
    seconds: float = 0.0
    timings: dict[str, float] | None = None


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
class KeyReused:
    """The idempotency key is that of another request, which this job came from."""

    job_id: str


@dataclass(frozen=True)
class Page:
    """Some of an owner's jobs, in order, and whether more come after them."""

    jobs: list[Job]
    has_more: bool


@dataclass(frozen=True)
class Place:
    """Where an unfinished job stands.

    Attributes:
        position: 0: an engine works on it; 1: it is the next one.
        eta_s: predicted seconds until it is completed.
    """

    position: int
    eta_s: float


@dataclass(frozen=True)
class Backlog:
    """Unfinished work."""

    queued: int
    running: int
    seconds: float
    """Predicted for all queued jobs and for what remains of the running ones."""
    holders: frozenset[str]
    """Who holds the leases of the running ones."""
