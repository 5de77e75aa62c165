"""A local path for every source. Objects of a bucket are copied to a cache on this node."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cinesynth.data.footage.sources import fingerprint, is_remote
from cinesynth.data.records import Stamp
from cinesynth.errors import AttemptFailed, MediaError, StorageError
from cinesynth.storage import HIDDEN, Storage, public_uri, scratch_folder, sha256_file

_ABANDONED_S = 86_400.0


@contextmanager
def local_file(location: str, sha256: str, stamp: Stamp, cache_bytes: float) -> Iterator[str]:
    """A local path with the content of `location`: the file itself, or a copy in this node's cache.

    A copy stays while anyone uses it. When the cache outgrows `cache_bytes`, the copies that were used longest ago are
    removed. Raises AttemptFailed when the file cannot be read or fetched, or has changed: a local file by its `stamp`,
    before or while it was read, an object by its `sha256`.
    """
    if not is_remote(location):
        _check_unchanged(location, stamp)
        try:
            yield location
        except MediaError:  # which says nothing of a file that was being written
            _check_unchanged(location, stamp)
            raise
        _check_unchanged(location, stamp)
        return
    folder = scratch_folder("footage")
    target = folder / (sha256 + Path(public_uri(location)).suffix)
    with open(_lock_of(target), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            _fetch(location, sha256, target)
            _make_room(folder, cache_bytes)
        os.utime(target)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield str(target)


def _check_unchanged(location: str, stamp: Stamp) -> None:
    """Raise AttemptFailed when a local file has changed since it had the stamp."""
    try:
        now = fingerprint(location)
    except MediaError as e:
        raise AttemptFailed(str(e)) from e
    if now != stamp:
        raise AttemptFailed(f"{location} changed while it was prepared; give the same command again")


def _fetch(location: str, sha256: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=HIDDEN) as folder:
        copy = Path(folder) / target.name
        try:
            Storage.open(location).download("", copy)
        except (OSError, StorageError) as e:
            raise AttemptFailed(f"{public_uri(location)} cannot be fetched: {e}") from e
        if sha256_file(copy) != sha256:
            raise AttemptFailed(f"{public_uri(location)} changed while it was prepared; give the same command again")
        os.replace(copy, target)  # a kill before leaves no copy that nobody has checked


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
