"""What lies in a folder of this machine, and in the folders below it, linked ones too."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Odd:
    """Something that is no file to read, and why: reason and detail are those of a reject."""

    path: str
    reason: str
    detail: str


def walk_folder(root: str, besides: Sequence[str] = ()) -> Iterator[tuple[str, list[str], list[Odd]]]:
    """Each folder at or below `root` with the names of its files, and with what in it cannot be read.

    Hidden files and folders are passed over, and so are the folders `besides`. A linked folder is entered once all
    others were, unless it leads to one of them.
    """
    passed_over = {os.path.realpath(folder) for folder in besides}
    waiting, links = deque([root]), deque[str]()
    entered: dict[str, str] = {}
    while waiting or links:
        linked = not waiting
        folder = waiting.popleft() if waiting else links.popleft()
        real = os.path.realpath(folder)
        if real in passed_over and folder != root:
            continue
        if linked and real in entered:
            detail = f"{folder} leads to {entered[real]}, which is searched already"
            yield folder, [], [Odd(folder, "duplicate", detail)]
            continue
        entered[real] = folder
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as e:
            yield folder, [], [Odd(folder, "unreadable", str(e))]
            continue
        names, odd = [], []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _quietly(entry.is_dir):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif what := what_is_wrong(entry.path):
                odd.append(Odd(entry.path, "unreadable", f"{entry.path} {what}"))
            else:
                names.append(entry.name)
        yield folder, names, odd


def what_is_wrong(path: str) -> str:
    """Why a path is no file to read, to be put behind its name; empty when it is one."""
    try:
        if os.path.isfile(path):
            return ""
        os.lstat(path)
    except FileNotFoundError:
        return "does not exist"
    except OSError as e:  # a folder that may be listed, but not entered
        return f"cannot be read: {e}"
    return "is a broken link" if os.path.islink(path) else "is not a regular file"


def _quietly(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:
        return False
