"""Bearer keys. A JSON file maps each owner's name to the sha256 of the owner's key; keys themselves are never stored.

A key has 256 random bits, which nobody can guess, so a plain hash is enough.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cinesynth.errors import ConfigError
from cinesynth.settings import NAME_PATTERN

KEY_PREFIX = "cs-"


def hash_key(key: str) -> str:
    """The hex sha256 of a key, as the file holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | os.PathLike[str]) -> dict[str, str]:
    """Each owner's name with the hash of the owner's key. Raises ConfigError for a missing or damaged file."""
    try:
        keys = json.loads(Path(path).read_text())
    except (OSError, ValueError) as e:
        raise ConfigError(f"keys file {os.fspath(path)!r} cannot be read: {e}") from e
    entries = keys.items() if isinstance(keys, dict) else [("", "")]
    if not all(isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v) for _, v in entries):
        raise ConfigError(f"keys file {os.fspath(path)!r}: expected an object of name to sha256 (64 hex digits)")
    return keys


def create_key(path: str | os.PathLike[str], name: str) -> str:
    """Make a key for `name` and return it. The file keeps only its hash.

    Raises ConfigError for a bad name, or for one that already has a key.
    """
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(f"key name {name!r}: use lower-case letters, digits, '.', '_' and '-', at most 80")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    with _changing(Path(path)):
        keys = read_keys(path) if Path(path).exists() else {}
        if name in keys:
            raise ConfigError(f"{name!r} has a key in {os.fspath(path)!r}; revoke it first, or choose another name")
        _write(Path(path), {**keys, name: hash_key(key)})
    return key


def revoke_key(path: str | os.PathLike[str], name: str) -> None:
    """Remove the key of `name`. Running servers notice. Raises ConfigError when there is none."""
    with _changing(Path(path)):
        keys = read_keys(path)
        if name not in keys:
            there = ", ".join(sorted(keys)) or "none"
            raise ConfigError(f"{name!r} has no key in {os.fspath(path)!r}; there are: {there}")
        _write(Path(path), {n: h for n, h in keys.items() if n != name})


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Keeps others from changing the file between the reading and the writing; the lock lies beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise ConfigError(f"keys file {os.fspath(path)!r} cannot be changed: {e}") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)  # with it the lock ends


def _write(path: Path, keys: dict[str, str]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as f:
            f.write(json.dumps(keys, indent=2, sort_keys=True) + "\n")
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class KeyRing:
    """The keys of a file. The file is read again whenever it is replaced."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._read: tuple[int, int] | None = None
        self._keys: dict[str, str] = {}

    def owner(self, authorization: str | None) -> str | None:
        """The owner of the key in an `Authorization: Bearer KEY` header, or None. Raises ConfigError for a file that
        cannot be read.

        The key is compared with every stored hash, in constant time, even when an earlier one matched.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return None
        given = hash_key(key.strip())
        found = None
        for name, stored in self._current().items():
            if hmac.compare_digest(given, stored):
                found = name
        return found

    def _current(self) -> dict[str, str]:
        try:
            status = self.path.stat()
        except OSError as e:
            raise ConfigError(f"keys file {os.fspath(self.path)!r} cannot be read: {e}") from e
        if self._read != (status.st_mtime_ns, status.st_ino):
            self._keys = read_keys(self.path)
            self._read = (status.st_mtime_ns, status.st_ino)
        return self._keys
