"""Numbered changes of the job database, so that a newer cinesynth goes on with the queue of an older one.

`MIGRATIONS[n]` takes a database of version n to version n + 1. To change the tables: add a function at the end, and the
same change to `serve/database.py`. One that was released is never edited: databases exist that it has changed.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

import sqlalchemy as sa

from cinesynth.errors import StorageError

logger = logging.getLogger(__name__)

_POSTGRES_LOCK = 0x63696E65
"""Names the lock of those who migrate. SQLite needs none: its transactions that write come one after the other."""


def migrate(engine: sa.Engine, reads: sa.Engine) -> None:
    """Bring a database to the newest version, in one transaction. Others that open it meanwhile wait.

    Args:
        engine: its transactions take the write lock when they begin.
        reads: the same database, without the lock. A database of the newest version is opened while another writes.

    Raises:
        StorageError: the database is of a version that a newer cinesynth made.
    """
    with reads.connect() as db:
        if _version(db) == len(MIGRATIONS):
            return
    with engine.begin() as db:
        if db.dialect.name == "postgresql":
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRES_LOCK)))
        found = _version(db)  # asked again: another process may have been first
        for number in range(found, len(MIGRATIONS)):
            MIGRATIONS[number](db)
        if found != len(MIGRATIONS):
            db.execute(sa.text("DELETE FROM serve_schema"))
            db.execute(sa.text("INSERT INTO serve_schema (version) VALUES (:version)"), {"version": len(MIGRATIONS)})
            logger.info("the job database went from version %d to %d", found, len(MIGRATIONS))


def _version(db: sa.Connection) -> int:
    """The version of the database; 0: there are no tables yet."""
    if not sa.inspect(db).has_table("serve_schema"):
        return 0
    version = db.scalar(sa.text("SELECT max(version) FROM serve_schema")) or 0
    if version > len(MIGRATIONS):
        raise StorageError(
            f"the job database is of version {version}, and this cinesynth reads versions up to {len(MIGRATIONS)}: "
            "run the newer cinesynth that made it, or give `database` another URL"
        )
    return int(version)


def _jobs_with_leases(db: sa.Connection) -> None:
    """Version 1: the table of jobs."""
    metadata = sa.MetaData()
    sa.Table("serve_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))
    sa.Table(
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
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("passed_over", sa.Integer, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
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
    metadata.create_all(db)


def _own_losses_and_keys(db: sa.Connection) -> None:
    """Version 2: whose fault a lost lease was, seconds over all leases, idempotency keys, remixes, an index a query."""
    for column in (
        "idempotency_key VARCHAR(255)",
        "body_sha256 VARCHAR(64)",
        "remixed_from VARCHAR(64)",
        "node VARCHAR(80)",
        "leased_at FLOAT",
        "attempt_progress INTEGER NOT NULL DEFAULT 0",
        "seconds FLOAT NOT NULL DEFAULT 0",
        "timings JSON",
    ):
        db.execute(sa.text(f"ALTER TABLE jobs ADD COLUMN {column}"))
    # `started_at` was that of the last lease, and `attempts` was the number of leases, the one under way among them.
    db.execute(
        sa.text("UPDATE jobs SET leased_at = started_at, attempt_progress = progress WHERE status = 'in_progress'")
    )
    db.execute(
        sa.text(
            "UPDATE jobs SET seconds = completed_at - started_at "
            "WHERE status IN ('completed', 'failed') AND started_at < completed_at"
        )
    )
    db.execute(
        sa.text("UPDATE jobs SET attempts = attempts - 1 WHERE status IN ('in_progress', 'completed') AND attempts > 0")
    )
    # Work was in pixels and passes, and is in operations now: 0 is work that nobody knows.
    db.execute(sa.text("UPDATE jobs SET work = 0"))
    db.execute(sa.text("DROP INDEX ix_jobs_status"))
    for index in (
        "INDEX jobs_by_status ON jobs (status, seq)",
        "INDEX jobs_by_completion ON jobs (status, completed_at)",
        "INDEX jobs_by_expiry ON jobs (expires_at)",
        "INDEX jobs_by_owner ON jobs (owner, seq)",
        "UNIQUE INDEX jobs_by_idempotency_key ON jobs (owner, idempotency_key)",
    ):
        db.execute(sa.text(f"CREATE {index}"))


def _id_of_the_table(db: sa.Connection) -> None:
    """Version 3: an id, by which a storage tells this table from others."""
    db.execute(sa.text("CREATE TABLE job_table (id VARCHAR(32) NOT NULL PRIMARY KEY)"))
    db.execute(sa.text("INSERT INTO job_table (id) VALUES (:id)"), {"id": uuid.uuid4().hex})


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_jobs_with_leases, _own_losses_and_keys, _id_of_the_table)
