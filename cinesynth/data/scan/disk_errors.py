"""Tell a disk or file server that fails from a damaged file: the former says nothing of the footage, and may pass.

FFmpeg hands on the number of the system's error. EIO alone is ambiguous: FFmpeg also gives it for some files that end
too early (Matroska).
"""

from __future__ import annotations

import errno

from cinesynth.errors import AttemptFailed

_PART = 1 << 24  # bytes that are read at a time
_SERVER = {"ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENOLCK", "EREMOTEIO", "ESTALE", "ETIMEDOUT"}
_NETWORK = {"EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "ESHUTDOWN"}
_MACHINE = {"EMFILE", "ENFILE", "ENODEV", "ENXIO"}
# Not every system has all of them.
_OF_DISK = {code for code, name in errno.errorcode.items() if name in _SERVER | _NETWORK | _MACHINE}


def is_of_disk(error: BaseException) -> bool:
    """Whether an error's number is one that no content of a file brings about."""
    return getattr(error, "errno", None) in _OF_DISK


def is_ambiguous(error: BaseException) -> bool:
    """Whether an error comes from the disk or from the content."""
    return getattr(error, "errno", None) == errno.EIO


def check_readable(path: str, whole: bool = True) -> None:
    """Read a file, or its first byte. Raises AttemptFailed when that fails."""
    try:
        with open(path, "rb") as file:
            while file.read(_PART if whole else 1) and whole:
                pass
    except OSError as e:
        raise AttemptFailed(f"{path} cannot be read: {e.strerror}") from e
