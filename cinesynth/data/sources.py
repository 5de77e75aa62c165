"""Find footage: folders, files, globs, lists and bucket prefixes, as one list of sources.

Names mean nothing here: what a file is, is decided by its content. What cannot be a source is a reject, never the end.
"""

from __future__ import annotations

import csv
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cinesynth.data.captions import MAX_CAPTION
from cinesynth.data.config import VIDEO_SUFFIXES, FootageSource
from cinesynth.data.samples import resolve_footage
from cinesynth.errors import AttemptFailed, ConfigError, MediaError, StorageError
from cinesynth.storage import HIDDEN, Storage, public_uri, sha256_file

Stamp = tuple[int, int]
"""Size in bytes, and time of the last change in ns: where both are as before, so is the content."""
LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
LIST_COLUMNS = ("path", "caption", "domain", "group", "in_s", "out_s")
_ABANDONED_S = 86_400.0


@dataclass(frozen=True)
class Source:
    """One file, or a part of one.

    Attributes:
        location: absolute local path, or an object of a bucket with what opens it.
        domain: free tag.
        caption: default for what has no sidecar; None: the dataset's.
        group: what must not be divided between splits; None: the file.
        in_s, out_s: seconds from the file's first frame; what lies between is used.
    """

    location: str
    domain: str
    caption: str | None = None
    group: str | None = None
    in_s: float = 0.0
    out_s: float = math.inf

    @property
    def uri(self) -> str:
        """The location as datasets record it."""
        return public_uri(self.location)


@dataclass(frozen=True)
class Reject:
    """Something that is not in the dataset, and why. `window_id` is empty when it is more than one window."""

    source: str
    reason: str
    detail: str
    window_id: str = ""


def find_sources(footage: Sequence[FootageSource]) -> tuple[list[Source], list[Reject]]:
    """All sources in order, the same part of a file once, and what cannot be one.

    Folders are searched recursively (symlinked folders are not entered, hidden files are passed over), names in
    sorted order. Raises ConfigError for a list that cannot be read.
    """
    found: dict[tuple[str, float, float], Source] = {}
    rejects: list[Reject] = []
    for source in footage:
        for item in _expand(source, rejects):
            if is_unicode(item.location):
                found.setdefault((item.location, item.in_s, item.out_s), item)
            else:
                rejects.append(Reject(item.uri, "unreadable", f"the name of {item.uri} is not UTF-8; rename it"))
    shown = [replace(r, source=_shown(r.source), detail=_shown(r.detail)) for r in rejects]
    return list(found.values()), shown


def _shown(text: str) -> str:
    """Text that can be written as UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def is_remote(location: str) -> bool:
    return "://" in location


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8; names of files and JSON may hold what cannot."""
    return _shown(text) == text


def _expand(source: FootageSource, rejects: list[Reject]) -> Iterator[Source]:
    if is_remote(source.path):
        yield from _remote(source)
        return
    root = resolve_footage(source.path).absolute()
    if root.suffix.lower() in LIST_SUFFIXES and root.is_file():
        yield from read_list(root, source)
        return
    roots = [root]
    if glob.has_magic(str(root)) and not root.exists():
        roots = [path for path in matches(root) if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES]
    for path in roots:
        for file in _videos_below(path, rejects) if path.is_dir() else [path]:
            try:
                what = "" if file.is_file() else "is a broken link" if file.is_symlink() else "is not a regular file"
            except OSError as e:  # a folder that may be listed, but not entered
                what = f"cannot be read: {e}"
            if what:
                rejects.append(Reject(str(file), "unreadable", f"{file} {what}"))
            else:
                yield Source(str(file), source.domain, source.caption)


def matches(pattern: Path) -> list[Path]:
    """What an absolute glob matches, in sorted order, hidden files apart; `**` enters no symlinked folder."""
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(path for path in found if not path.name.startswith("."))


def _videos_below(root: Path, rejects: list[Reject]) -> list[Path]:
    def denied(error: OSError) -> None:
        rejects.append(Reject(str(error.filename), "unreadable", str(error)))

    paths = []
    for folder, _, names in os.walk(root, onerror=denied):
        wanted = (n for n in names if n.lower().endswith(VIDEO_SUFFIXES) and not n.startswith("."))
        paths += [Path(folder) / name for name in wanted]
    return sorted(paths)


def _remote(source: FootageSource) -> Iterator[Source]:
    location = Storage.open(source.path)
    if location.path.lower().endswith(LIST_SUFFIXES):
        raise ConfigError(
            f"footage: {public_uri(source.path)}: a list is read from a local path; its rows may name objects"
        )
    if location.path.lower().endswith(VIDEO_SUFFIXES):
        yield Source(source.path, source.domain, source.caption)
        return
    try:
        names = location.list("", recursive=True)
    except OSError as e:
        raise ConfigError(f"footage: {public_uri(source.path)} cannot be listed: {e}") from e
    for name in names:
        if name.lower().endswith(VIDEO_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith("."):
            yield Source(Storage.below(source.path, name), source.domain, source.caption)


# --- lists ---------------------------------------------------------------------------------------------------


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


# --- content -------------------------------------------------------------------------------------------------


def fingerprint(location: str) -> Stamp:
    """The `Stamp` of a file or object.

    Raises MediaError when it cannot be read.
    """
    try:
        if not is_remote(location):
            found = os.stat(location)
            return found.st_size, found.st_mtime_ns
        storage = Storage.open(location)
        info = storage.filesystem.get_file_info(storage.path)
        return int(info.size or 0), int(info.mtime_ns or 0)
    except (OSError, StorageError) as e:
        raise MediaError(f"{public_uri(location)} cannot be read: {e}") from e


def content_sha256(location: str) -> str:
    """Hex sha256 of a source's bytes. Raises MediaError when they cannot be read."""
    try:
        return Storage.open(location).sha256("")
    except (OSError, StorageError) as e:
        raise MediaError(f"{public_uri(location)} cannot be read: {e}") from e


@contextmanager
def local_file(location: str, sha256: str, stamp: Stamp, cache_bytes: float) -> Iterator[str]:
    """A local path with the content of `location`: its own, or that of a copy in this node's cache.

    A copy stays while anyone is inside; those that were used longest ago are removed when the cache outgrows
    `cache_bytes`. Raises AttemptFailed when it cannot be read or fetched, or is not what it was: another `stamp`, or
    an object with another `sha256`.
    """
    if not is_remote(location):
        try:
            now = fingerprint(location)
        except MediaError as e:
            raise AttemptFailed(str(e)) from e
        if now != stamp:
            raise AttemptFailed(f"{location} changed while it was prepared; give the same command again")
        yield location
        return
    folder = Path(tempfile.gettempdir()) / f"cinesynth-footage-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    target = folder / (sha256 + Path(public_uri(location)).suffix)
    with open(_lock_of(target), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            _fetch(location, sha256, target)
            _make_room(folder, cache_bytes)
        os.utime(target)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield str(target)


def _fetch(location: str, sha256: str, target: Path) -> None:
    try:
        Storage.open(location).download("", target)
    except (OSError, StorageError) as e:
        raise AttemptFailed(f"{public_uri(location)} cannot be fetched: {e}") from e
    if sha256_file(target) != sha256:
        target.unlink()
        raise AttemptFailed(f"{public_uri(location)} changed while it was prepared; give the same command again")


def _make_room(folder: Path, cache_bytes: float) -> None:
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{HIDDEN}*"):  # by a fetch that was killed
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        files = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        for path in files:
            if total <= cache_bytes:
                return
            with open(_lock_of(path), "w") as of_file:
                try:
                    fcntl.flock(of_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # someone reads it
                    continue
                total -= path.stat().st_size
                path.unlink()


def _lock_of(path: Path) -> Path:
    return path.with_name(f".lock-{path.name}")


def source_key(source: Source, sha256: str) -> str:
    """Identity of a part of a file, by content."""
    span = "" if source.in_s == 0 and source.out_s == math.inf else f"{source.in_s:.3f}-{source.out_s:.3f}"
    return hashlib.sha256(f"{sha256}{span}".encode()).hexdigest()
