"""Lists of footage: .csv, .jsonl and .parquet files with one row a source."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.captions import MAX_CAPTION, decode_text, text_or_number
from cinesynth.data.footage.formats import is_video_name
from cinesynth.data.footage.packages import resolve_footage
from cinesynth.data.footage.sources import Source, is_remote, is_unicode
from cinesynth.errors import ConfigError
from cinesynth.storage import public_uri, split_options

LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
LIST_COLUMNS = ("path", "caption", "domain", "group", "in_s", "out_s")
LISTS_ARE = f"lists are {', '.join(LIST_SUFFIXES[:-1])} or {LIST_SUFFIXES[-1]}"


def read_list(path: Path, default: FootageSource) -> Iterator[Source]:
    """Sources of a .csv, .jsonl or .parquet list; its rows override what `default` says.

    Raises ConfigError, naming file, row and value, for what cannot be meant. A row of .csv and .parquet is counted
    from the first one of data, a row of .jsonl is a line.
    """
    rows = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[path.suffix.lower()]
    try:
        for number, row in rows(path):
            yield _listed(row, f"{path}, row {number}", path.parent, default)
    except (OSError, ValueError, OverflowError, NotImplementedError, csv.Error) as e:  # pyarrow raises any of these
        raise ConfigError(f"footage: {path} cannot be read as a list: {e}") from e


def check_no_list(location: str) -> None:
    """Raise ConfigError when an object of a bucket is named like a list."""
    if split_options(location)[0].lower().endswith(LIST_SUFFIXES):
        what = "a list is read from a local path; its rows may name objects"
        raise ConfigError(f"footage: {public_uri(location)}: {what}")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    yield from enumerate(pq.read_table(path).to_pylist(), start=1)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    # Only a line feed ends a record: JSON text may hold the other characters that Unicode takes for ends of lines.
    for number, line in enumerate(decode_text(path.read_bytes()).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as e:
                raise ConfigError(f"{path}, row {number}: {_shown(line)} is not one JSON object: {e}") from e


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(decode_text(path.read_bytes()), newline=""), strict=True)
    columns = list(reader.fieldnames or ())
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(f"{path}: column {twice[0]!r} is there twice")
    if len(columns) == 1 and ";" in columns[0]:
        raise ConfigError(f"{path}: the header {columns[0]!r} has no comma; separate columns with commas")
    number = 0
    while True:
        number += 1
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as e:
            what = "its quote is not closed" if "unexpected end" in str(e) else str(e)
            raise ConfigError(f"{path}, row {number} (line {line}): {what}") from e
        if row is None:
            return
        _check_quotes(row, f"{path}, row {number} (line {line})")
        yield number, row


def _check_quotes(row: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a value that has swallowed the rows behind it: a later quote may close an open one."""
    for name, value in row.items():
        for line in value.splitlines()[1:] if isinstance(value, str) else ():
            if "," in line and any(is_video_name(part.strip(' "')) for part in line.split(",")):
                raise ConfigError(f"{where}: {name} = {_shown(value)} holds another row; close its quote")


def _listed(row: Any, where: str, folder: Path, default: FootageSource) -> Source:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected an object with 'path', not {type(row).__name__}")
    if None in row:  # csv's key for what stands beyond the header's columns
        raise ConfigError(f"{where}: {len(row[None])} values more than columns; put values with a comma in quotes")
    unknown = sorted(str(name) for name in row.keys() - set(LIST_COLUMNS))
    if unknown:
        raise ConfigError(f"{where}: unknown column {unknown[0]!r}; allowed: {', '.join(LIST_COLUMNS)}")
    value = {name: row.get(name) for name in LIST_COLUMNS} | {"group": text_or_number(row.get("group"))}
    for name in ("path", "caption", "domain", "group"):
        text = value[name]
        if text is not None and not (isinstance(text, str) and is_unicode(text) and "\0" not in text):
            raise ConfigError(f"{where}: {name} = {_shown(text)} is not text")
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
    uri = path if is_remote(path) else _without_detours(str((folder / resolve_footage(path)).absolute()))
    return Source(uri, domain, caption, (value["group"] or "").strip() or None, in_s, out_s, row=where)


def _without_detours(path: str) -> str:
    """A path without `..`, as a folder that is searched names the same file."""
    short = os.path.normpath(path)
    return short if short != path and os.path.realpath(short) == os.path.realpath(path) else path


def _seconds(value: Any, name: str, where: str, default: float) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(f"{where}: {name} = {_shown(value)} is not a number of seconds from the file's start")
    return number


def _shown(value: Any) -> str:
    """A value, its first characters when it is long."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:57]}...")
    try:
        text = repr(value)
    except RecursionError:  # what was just deep enough to be read
        return "a value that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
