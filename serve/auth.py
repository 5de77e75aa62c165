"""Bearer keys. A JSON file maps each owner's name to the sha256 of the owner's key, and to what the key may do; keys
themselves are never stored.

A key has 256 random bits, which nobody can guess, so a plain hash is enough.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import math
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from cinesynth.errors import ConfigError
from cinesynth.settings import NAME_PATTERN, Finite

KEY_PREFIX = "cs-"

Scope = Literal["videos", "review"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class KeyEntry(BaseModel):
    """What the file holds of a key. Files of before there were scopes hold the hash alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("videos",)
    max_flops_per_job: Annotated[Finite, Field(gt=0)] | None = None
    """Most work that one request may ask for."""

    @model_validator(mode="before")
    @classmethod
    def _hash_alone(cls, value: object) -> object:
        return {"sha256": value} if isinstance(value, str) else value


class _Entries(RootModel[dict[str, KeyEntry]]):
    pass


class Key(KeyEntry):
    """A key that was given, and whose it is."""

    owner: str


def hash_key(key: str) -> str:
    """The hex sha256 of a key, as the file holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | os.PathLike[str]) -> dict[str, KeyEntry]:
    """Each owner's name with the owner's key. Raises ConfigError for a missing or damaged file."""
    try:
        return _Entries.model_validate_json(Path(path).read_bytes()).root
    except ValidationError as e:
        item = e.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in item["loc"])
        expected = "expected an object of name to sha256 (64 hex digits), or to sha256, scopes and max_flops_per_job"
        raise ConfigError(f"keys file {os.fspath(path)!r}: {where or 'the file'}: {item['msg']}; {expected}") from None
    except OSError as e:
        raise ConfigError(f"keys file {os.fspath(path)!r} cannot be read: {e}") from e


def create_key(
    path: str | os.PathLike[str],
    name: str,
    scopes: Sequence[str] = ("videos",),
    max_flops_per_job: float | None = None,
) -> str:
    """Make a key for `name` and return it. The file keeps only its hash.

    Raises ConfigError for a bad name, scope or bound, or for a name that already has a key.
    """
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(f"key name {name!r}: use lower-case letters, digits, '.', '_' and '-', at most 80")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ConfigError(f"scopes {', '.join(scopes) or 'none'}: give one or more of {', '.join(SCOPES)}")
    if max_flops_per_job is not None and not 0 < max_flops_per_job < math.inf:
        raise ConfigError(f"max_flops_per_job {max_flops_per_job}: give a number above 0, as 1e18")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    made = {"sha256": hash_key(key), "scopes": scopes, "max_flops_per_job": max_flops_per_job}
    with _changing(Path(path)):
        keys = read_keys(path) if Path(path).exists() else {}
        if name in keys:
            raise ConfigError(f"{name!r} has a key in {os.fspath(path)!r}; revoke it first, or choose another name")
        _write(Path(path), {**keys, name: KeyEntry.model_validate(made)})
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


def _write(path: Path, keys: dict[str, KeyEntry]) -> None:
    content = _Entries(dict(sorted(keys.items()))).model_dump_json(indent=2, exclude_none=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as f:
            f.write(content + "\n")
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
        self._read: tuple[tuple[int, int], dict[str, KeyEntry]] | None = None
        """What named the file's state, and its keys: set as one, as several threads read at once."""

    def key(self, authorization: str | None) -> Key | None:
        """The key in an `Authorization: Bearer KEY` header, if it is one of the file's. Raises ConfigError for a file
        that cannot be read.

        The key is compared with every stored hash, in constant time, even when an earlier one matched.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return None
        given = hash_key(key.strip())
        found = None
        for name, stored in self._current().items():
            if hmac.compare_digest(given, stored.sha256):
                found = Key(owner=name, **stored.model_dump())
        return found

    def _current(self) -> dict[str, KeyEntry]:
        try:
            status = self.path.stat()
        except OSError as e:
            raise ConfigError(f"keys file {os.fspath(self.path)!r} cannot be read: {e}") from e
        state = status.st_mtime_ns, status.st_ino
        read = self._read
        if read is None or read[0] != state:
            read = self._read = state, read_keys(self.path)
        return read[1]
