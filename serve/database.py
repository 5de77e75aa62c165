"""The job database: its table, and how it is opened. `serve/migrations.py` makes the table and changes it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cinesynth.errors import StorageError
from serve.migrations import migrate
from serve.mounts import check_local
from serve.records import DatabaseFull

BUSY_S = 30
"""Seconds that a transaction waits for another one that writes to SQLite."""

_READS = "cinesynth_reads"
"""Execution option of connections that only read: they wait for no writer, and keep none waiting."""

metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), unique=True, nullable=False),
    sa.Column("owner", sa.String(80), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("adapter", sa.String(200)),
    sa.Column("image", sa.String(200), nullable=False),
    sa.Column("work", sa.Float, nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_sha256", sa.String(64)),
    sa.Column("remixed_from", sa.String(64)),
    # Percent: the highest that was told of any attempt, for clients; and that of the attempt under way.
    sa.Column("progress", sa.Integer, nullable=False, default=0),
    sa.Column("attempt_progress", sa.Integer, nullable=False, default=0),
    # Leases that were lost for a reason of the job's own; the token counts all leases.
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("passed_over", sa.Integer, nullable=False, default=0),
    sa.Column("token", sa.Integer, nullable=False, default=0),
    sa.Column("holder", sa.String(80)),
    sa.Column("node", sa.String(80)),
    sa.Column("leased_at", sa.Float),
    sa.Column("lease_expires_at", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    # Of all leases that have ended.
    sa.Column("seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("timings", sa.JSON),
    sa.Column("result", sa.String(200)),
    sa.Column("sha256", sa.String(64)),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error_message", sa.String(2000)),
    sa.Index("jobs_by_status", "status", "seq"),
    sa.Index("jobs_by_completion", "status", "completed_at"),
    sa.Index("jobs_by_expiry", "expires_at"),
    sa.Index("jobs_by_owner", "owner", "seq"),
    sa.Index("jobs_by_idempotency_key", "owner", "idempotency_key", unique=True),
)

table = sa.Table("job_table", metadata, sa.Column("id", sa.String(32), primary_key=True))
"""One row: the id by which a storage knows the table whose files it has."""


def open_database(url: str) -> tuple[sa.Engine, sa.Engine]:
    """Open a database at the newest version.

    Args:
        url: SQLAlchemy URL. SQLite makes a file that is missing, and refuses a network file system.

    Returns:
        What begins transactions that write, and what reads without the write lock.

    Raises:
        StorageError: the database cannot be opened, lies where it is not safe, or is of a newer version.
    """
    try:
        engine = _connect(sa.make_url(url))
        in_memory = engine.dialect.name == "sqlite" and sqlite_file(url) is None
        # Connections that no writer takes up; a database in memory is one engine's alone.
        reads = (engine if in_memory else _connect(engine.url)).execution_options(**{_READS: True})
        migrate(engine, reads)
    except (sa.exc.SQLAlchemyError, ImportError) as e:
        shown = url.rpartition("@")[2]  # without credentials
        raise StorageError(f"database {shown!r} cannot be opened: {e}") from e
    return engine, reads


def sqlite_file(url: str | sa.URL) -> Path | None:
    """The file of an SQLite database; None for one in memory, and for other databases."""
    parts = sa.make_url(url)
    if parts.get_backend_name() != "sqlite":
        return None
    file = parts.database or ""
    if file.startswith("file:"):  # SQLite's own form of URL
        file = file.removeprefix("file:").partition("?")[0]
    return None if file in ("", ":memory:") else Path(file)


def _connect(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(url)
    if engine.dialect.name != "sqlite":
        return engine
    if (file := sqlite_file(url)) is not None:
        check_local(file)

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, not at the first write
        connection.execute(f"PRAGMA busy_timeout={1000 * BUSY_S}")
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "handle_error")
    def on_error(context: sa.engine.ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DatabaseFull("the disk of the job database is full") from context.original_exception

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        # A transaction that writes takes the write lock at once: what it reads is still true when it writes.
        reads = connection.get_execution_options().get(_READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: Any) -> None:
    """Set the mode that a new database keeps. Where another process sets it too, SQLite refuses without waiting."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
