"""Check the footage that a configuration names, before Ray starts."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.folders import walk_folder
from cinesynth.data.footage.formats import holds_video, is_video_name, named_otherwise, suffix_of
from cinesynth.data.footage.lists import LIST_SUFFIXES, LISTS_ARE, check_no_list, read_list
from cinesynth.data.footage.packages import resolve_footage
from cinesynth.data.footage.search import matches
from cinesynth.data.footage.sources import is_remote
from cinesynth.errors import ConfigError, MediaError

_OPENED = 100  # files whose names leave open what they are


def check_footage(footage: Sequence[FootageSource]) -> None:
    """Raise ConfigError for a source that is missing on this machine, or names nothing that could be video."""
    for i, source in enumerate(footage):
        _check_source(f"footage.{i}.path", source)


def _check_source(key: str, source: FootageSource) -> None:
    if is_remote(source.path):
        check_no_list(source.path)
        return
    path = resolve_footage(source.path).absolute()
    if glob.has_magic(str(path)) and not os.path.lexists(path):
        matched = matches(path)
        if not matched:
            raise ConfigError(f"{key}: {source.path!r} matches nothing")
        inside = (name for found in matched for name in ([str(found)] if not found.is_dir() else _files_below(found)))
        _check_some_video(f"{key}: {source.path!r} matches no video", inside)
    elif not os.path.lexists(path):
        raise ConfigError(f"{key}: {source.path!r} does not exist; give a folder, a video file, a glob or a list")
    elif path.is_dir():
        _check_some_video(f"{key}: {source.path!r} holds no video", _files_below(path))
    elif path.suffix.lower() in LIST_SUFFIXES:
        if not list(read_list(path, source)):
            raise ConfigError(f"{key}: {source.path!r} has no rows")
    elif not is_video_name(path.name) and path.is_file() and not _may_hold_video(path):
        raise ConfigError(f"{key}: {source.path!r} holds no video that FFmpeg knows, and is no list: {LISTS_ARE}")


def _files_below(folder: Path) -> Iterator[str]:
    return (f"{where}/{name}" for where, names, _ in walk_folder(str(folder)) for name in names)


def _check_some_video(what: str, files: Iterable[str]) -> None:
    """Raise ConfigError when no file is video by its name, nor by its header if few have names that leave it open."""
    counts: Counter[str] = Counter()
    unclear: list[str] = []
    for name in files:
        if is_video_name(name):
            return
        counts[suffix_of(name) or "without a suffix"] += 1
        if not named_otherwise(name):
            unclear.append(name)
    if len(unclear) > _OPENED or any(_may_hold_video(Path(name)) for name in unclear):
        return
    there = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
    raise ConfigError(f"{what}, but {counts.total()} other files ({there})" if counts else f"{what}: it is empty")


def _may_hold_video(path: Path) -> bool:
    """Whether a file holds video, as far as this machine can tell."""
    try:
        return holds_video(str(path))
    except MediaError:  # the row that it becomes says why
        return True
