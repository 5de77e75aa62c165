"""Lists of footage: .csv, .jsonl and .parquet files with one row a source."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.captions import MAX_CAPTION
from cinesynth.data.footage.packages import resolve_footage
from cinesynth.data.footage.sources import Source, is_remote, is_unicode
from cinesynth.errors import ConfigError

LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
LIST_COLUMNS = ("path", "caption", "domain", "group", "in_s", "out_s")


def read_list(path: Path, default: FootageSource) -> Iterator[Source]:
    """Sources of a .csv, .jsonl or .parquet list; its rows override what `default` says.

    Raises ConfigError, naming file, row and value, for what cannot be meant.
    """
    for number, row in enumerate(_list_rows(path), start=1):
        yield _listed(row, f"{path}, row {number}", path.parent, default)


def _list_rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as e:
        raise ConfigError(f"footage: {path} cannot be read as a list: {e}") from e


def _listed(row: Any, where: str, folder: Path, default: FootageSource) -> Source:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected an object with 'path', not {type(row).__name__}")
    if None in row:  # csv's key for what stands beyond the header's columns
        raise ConfigError(f"{where}: {len(row[None])} values more than columns; put values with a comma in quotes")
    unknown = sorted(str(name) for name in row.keys() - set(LIST_COLUMNS))
    if unknown:
        raise ConfigError(f"{where}: unknown column {unknown[0]!r}; allowed: {', '.join(LIST_COLUMNS)}")
    value = {name: row.get(name) for name in LIST_COLUMNS}
    for name in ("path", "caption", "domain", "group"):
        text = value[name]
        if text is not None and not (isinstance(text, str) and is_unicode(text)):
            raise ConfigError(f"{where}: {name} = {text!r} is not text")
    path = (value["path"] or "").strip()
    if not path:
        raise ConfigError(f"{where}: path is empty")
    in_s, out_s = _seconds(value["in_s"], "in_s", where, 0.0), _seconds(value["out_s"], "out_s", where, math.inf)
    if in_s >= out_s:
        raise ConfigError(f"{where}: in_s = {in_s:g} is not before out_s = {out_s:g}")
    caption = (value["caption"] or "").strip() or default.caption
    if caption and len(caption) > MAX_CAPTION:
        raise ConfigError(f"{where}: the caption has {len(caption):,} characters; at most {MAX_CAPTION:,}")
    domain = (value["domain"] or "").strip() or default.domain
    try:
        FootageSource(path=path, domain=domain)
    except ValueError as e:
        raise ConfigError(f"{where}: domain = {domain!r}: lower-case letters, digits, '.', '_' and '-' only") from e
    uri = path if is_remote(path) else str((folder / resolve_footage(path)).absolute())
    return Source(uri, domain, caption, (value["group"] or "").strip() or None, in_s, out_s)


def _seconds(value: Any, name: str, where: str, default: float) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(f"{where}: {name} = {value!r} is not a number of seconds from the file's start")
    return number
