"""What can be wrong with the footage that a configuration names, found before Ray starts."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from cinesynth.data.config import VIDEO_SUFFIXES, FootageSource
from cinesynth.data.footage.lists import LIST_SUFFIXES, read_list
from cinesynth.data.footage.packages import resolve_footage
from cinesynth.data.footage.search import matches
from cinesynth.data.footage.sources import is_remote
from cinesynth.errors import ConfigError


def check_footage(footage: Sequence[FootageSource]) -> None:
    """Raise ConfigError for a source that is missing on this machine, or names nothing."""
    for i, source in enumerate(footage):
        _check_source(f"footage.{i}.path", source)


def _check_source(key: str, source: FootageSource) -> None:
    if is_remote(source.path):
        return
    path = resolve_footage(source.path)
    if glob.has_magic(str(path)) and not path.exists():
        if not matches(path.absolute()):
            raise ConfigError(f"{key}: {source.path!r} matches nothing")
    elif not path.exists():
        raise ConfigError(f"{key}: {source.path!r} does not exist; give a folder, a video file, a glob or a list")
    elif path.suffix.lower() in LIST_SUFFIXES:
        if not list(read_list(path, source)):
            raise ConfigError(f"{key}: {source.path!r} has no rows")
    elif path.is_dir() and not any(p.suffix.lower() in VIDEO_SUFFIXES for p in path.rglob("*")):
        raise ConfigError(f"{key}: {source.path!r} holds no video file ({', '.join(VIDEO_SUFFIXES)})")
