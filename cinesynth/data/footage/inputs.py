"""Check the footage that a configuration names, before Ray starts."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.folders import walk_folder
from cinesynth.data.footage.formats import holds_video, is_video_name, named_otherwise, suffix_of
from cinesynth.data.footage.lists import LIST_SUFFIXES, LISTS_ARE, read_list
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
        return
    path = resolve_footage(source.path).absolute()
    if glob.has_magic(str(path)) and not os.path.lexists(path):
        matched = matches(path)
        if not matched:
            raise ConfigError(f"{key}: {source.path!r} matches nothing")
        inside = [name for found in matched for name in ([str(found)] if not found.is_dir() else _files_below(found))]
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


def _files_below(folder: Path) -> list[str]:
    inside, _ = walk_folder(str(folder))
    return [f"{where}/{name}" for where, names in inside.items() for name in names]


def _check_some_video(what: str, files: Sequence[str]) -> None:
    """Raise ConfigError when no file is one by its name, nor, of the first ones without a telling name, by content."""
    if any(is_video_name(name) for name in files):
        return
    unclear = [name for name in files if not named_otherwise(name)]
    if len(unclear) > _OPENED or any(_may_hold_video(Path(name)) for name in unclear):
        return
    counts = Counter(suffix_of(name) or "without a suffix" for name in files).most_common(5)
    there = ", ".join(f"{count} {suffix}" for suffix, count in counts)
    raise ConfigError(f"{what}, but {len(files)} other files ({there})" if files else f"{what}: it is empty")


def _may_hold_video(path: Path) -> bool:
    """Whether a file holds video, as far as this machine can tell."""
    try:
        return holds_video(str(path))
    except MediaError:  # the row that it becomes says why
        return True
