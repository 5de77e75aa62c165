"""Find footage: folders, files, globs, lists and bucket prefixes, as one list of sources.

Names mean nothing here: what a file is, is decided by its content. What cannot be a source is a reject, never the end.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cinesynth.data.config import VIDEO_SUFFIXES, FootageSource
from cinesynth.data.footage.lists import LIST_SUFFIXES, read_list
from cinesynth.data.footage.packages import resolve_footage
from cinesynth.data.footage.sources import Source, is_remote, is_unicode, printable
from cinesynth.data.records import Reject
from cinesynth.errors import ConfigError
from cinesynth.storage import Storage, public_uri


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
    shown = [replace(r, source=printable(r.source), detail=printable(r.detail)) for r in rejects]
    return list(found.values()), shown


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
