"""What the Dispatcher deletes: jobs whose time is over with their files, and files that nobody needs."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from cinesynth.storage import HIDDEN
from serve.config import ServeConfig
from serve.jobs import JobStore
from serve.tables import other_tables

logger = logging.getLogger(__name__)

ORPHAN_S = 600.0
"""Age of a file without a job from which on none can come: a request has ended long before."""
TOLD_S = 3600.0
"""Seconds until a file that cannot be deleted is told again."""


class Sweeper:
    """Sweeps the folders of one service, again and again.

    Args:
        store: its job table.
        config: resolved configuration.
    """

    def __init__(self, store: JobStore, config: ServeConfig) -> None:
        self._store, self._config = store, config
        self._told: dict[Path, float] = {}
        """When it was told last that a file cannot be deleted."""

    def sweep(self) -> int:
        """Delete the jobs whose time is over, their files first, and files that nobody needs; returns the number of
        jobs.

        A process that died, and a client that broke off, may have left files that belong to no job. A job that comes
        meanwhile is no reason to take its file for an orphan: files are listed before jobs, and young ones stay. Where
        another table has files, too, none is an orphan. What cannot be deleted stays with its job, and keeps nothing
        else.
        """
        store, config = self._store, self._config
        files = [path for folder in (config.inputs(), config.results()) for path in folder.iterdir()]
        states = list(config.states().iterdir())
        over, known, unfinished = store.expired(), store.ids(), store.unfinished_ids()
        unneeded = [path for path in files if _job_of(path) in over]
        if other_tables(config, store):  # asked after listing: a table is recorded before it has files
            unneeded += [path for path in states if _job_of(path) in known - unfinished]
        else:
            unneeded += [path for path in files if _job_of(path) not in known and _is_old(path)]
            # The job of a state has had a lease: where it is not unfinished, it is finished or gone. A file that is
            # still being written tells no job.
            unneeded += [
                path
                for path in states
                if (_is_old(path) if path.name.startswith(HIDDEN) else _job_of(path) not in unfinished)
            ]
        kept = self._delete(unneeded)
        gone = over - {_job_of(path) for path in kept}
        store.forget(gone)
        return len(gone)

    def _delete(self, paths: list[Path]) -> list[Path]:
        """Delete files; returns those that cannot be, and tells of each once in a while."""
        kept, now, told = [], time.monotonic(), self._told
        self._told = {}
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as e:
                kept.append(path)
                self._told[path] = told.get(path, now)
                if path not in told or now - told[path] > TOLD_S:
                    self._told[path] = now
                    logger.warning("%s cannot be deleted (%s); remove it yourself", path, e.strerror or e)
        return kept


def _job_of(path: Path) -> str:
    """The job that a file of the service belongs to."""
    return path.name.removeprefix(HIDDEN).partition(".")[0]


def _is_old(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - ORPHAN_S
    except OSError:  # it is gone, or cannot be deleted either
        return False
