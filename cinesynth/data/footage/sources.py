"""A source: one file of footage, or a part of one, and its identity by content."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field

from cinesynth.data.records import Stamp
from cinesynth.errors import MediaError, StorageError
from cinesynth.storage import Storage, public_uri


@dataclass(frozen=True)
class Source:
    """One file, or a part of one.

    Attributes:
        location: absolute local path, or an object of a bucket with the options that open it.
        domain: free tag.
        caption: used where no caption file has one; None: the dataset's default is used.
        group: sources of one group are never divided between splits; None: the file is its own group.
        in_s, out_s: seconds from the file's first frame; the part between them is used.
        caption_files: names of the files beside it that hold its captions; None: they were not looked for.
        row: of the list that names it, such as `list.csv, row 3`; empty where a folder, glob or prefix holds it.
    """

    location: str
    domain: str
    caption: str | None = None
    group: str | None = None
    in_s: float = 0.0
    out_s: float = math.inf
    # The identity of a run's footage is made of the representation; these two are left out of it.
    caption_files: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    row: str = field(default="", repr=False, compare=False)

    @property
    def uri(self) -> str:
        """The location as datasets record it."""
        return public_uri(self.location)


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


def source_key(source: Source, sha256: str) -> str:
    """Identity of a part of a file, by content."""
    span = "" if source.in_s == 0 and source.out_s == math.inf else f"{source.in_s:.3f}-{source.out_s:.3f}"
    return hashlib.sha256(f"{sha256}{span}".encode()).hexdigest()


def is_remote(location: str) -> bool:
    return "://" in location


def below(folder: str, name: str) -> str:
    """The location of a file in a folder or prefix."""
    return Storage.below(folder, name) if is_remote(folder) else f"{folder.rstrip('/')}/{name}"


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8; names of files and JSON may hold what cannot."""
    return printable(text) == text


def printable(text: str) -> str:
    """Text that can be written as UTF-8."""
    return text.encode(errors="backslashreplace").decode()
