"""Which job tables keep their files below one storage, so that a service deletes no files of another table's jobs.

Each table has an id, and each that is opened over a storage leaves a record below `<storage>/serve/tables`. As long as
another table's record stands there, a file without a job may be a file of that table's.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from sqlalchemy import URL, make_url

from serve.config import ServeConfig
from serve.database import sqlite_file
from serve.jobs import JobStore
from serve.media import write_whole

logger = logging.getLogger(__name__)

UNKNOWN = "unknown.json"
"""Stands for the table of files that were there before the first record, and of which the first table knows nothing."""


def record_table(config: ServeConfig, store: JobStore) -> None:
    """Record that the files of a table's jobs lie in the storage, and warn where those of another table do, too."""
    folder = _folder(config)
    folder.mkdir(exist_ok=True)
    own = folder / f"{store.table_id}.json"
    if not own.exists():
        if not list(folder.glob("*.json")) and _has_strangers(config, store):
            _write(folder / UNKNOWN, {"database": None})
        url = make_url(config.database_url())
        public = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
        _write(own, {"database": public.render_as_string()})
    if others := other_tables(config, store):
        logger.warning(
            "%s has files of another job table as well (%s): files that belong to no job are kept, as they may be that "
            "table's. Once it is not used any more, remove: %s",
            *(config.home(), "; ".join(map(_told, others)), ", ".join(map(str, others))),
        )


def other_tables(config: ServeConfig, store: JobStore) -> list[Path]:
    """What shows that other tables have files in the storage: their records, and the database of the default place."""
    records = [path for path in sorted(_folder(config).glob("*.json")) if path.stem != store.table_id]
    default, file = config.home() / "jobs.db", sqlite_file(config.database_url())
    own = file is not None and file.exists() and default.exists() and file.samefile(default)
    return records + ([default] if default.exists() and not own else [])


def _folder(config: ServeConfig) -> Path:
    return config.home() / "tables"


def _has_strangers(config: ServeConfig, store: JobStore) -> bool:
    """Whether there are first frames or videos of no job of this table."""
    names = [path.name for folder in (config.inputs(), config.results()) for path in folder.iterdir()]
    jobs = {name.partition(".")[0] for name in names if not name.startswith(".")}
    return not jobs <= store.ids()


def _write(path: Path, record: dict[str, str | None]) -> None:
    written = {**record, "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    write_whole(json.dumps(written, indent=1).encode(), path)


def _told(path: Path) -> str:
    """What a user may know a table by."""
    if path.suffix != ".json":
        return os.fspath(path)
    try:
        record = json.loads(path.read_bytes())
        return f"{record['database'] or 'one that is not known'}, since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return path.stem
