"""A disk of a given size, which a test fills."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs at a new folder; the test is skipped where it cannot be mounted."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave room for this many bytes. What is written meanwhile does not stand in the way: it is measured again."""
    for _ in range(100):
        found = os.statvfs(disk)
        with suppress(subprocess.CalledProcessError):  # there is more on it by now
            return resize(disk, str((found.f_blocks - found.f_bfree) * found.f_frsize + left))
    pytest.fail(f"{disk} does not stay as full as it is")


def resize(disk: Path, size: str) -> None:
    """Give it another size in bytes (or with a suffix, as mount takes it)."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
