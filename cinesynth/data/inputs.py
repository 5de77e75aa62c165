"""What can be wrong with the inputs of `prepare`, found before Ray starts."""

from __future__ import annotations

import glob
import importlib.util
from pathlib import Path

from cinesynth.data.config import VIDEO_SUFFIXES, FootageSource, PrepareSettings
from cinesynth.data.decoder import make_decoder
from cinesynth.data.samples import resolve_footage
from cinesynth.data.shots import make_cut_detector
from cinesynth.data.sources import LIST_SUFFIXES, is_remote, matches, read_list
from cinesynth.errors import ConfigError

_EXTRAS = {"rapidocr": "detect_text", "onnxruntime": "detect_text"}


def check_prepare(settings: PrepareSettings) -> None:
    """Raise ConfigError for footage, packages or weights that are missing on this machine."""
    for i, source in enumerate(settings.footage):
        _check_source(f"footage.{i}.path", source)
    make_decoder(settings.decode.backend)
    make_cut_detector(settings.shots)
    if settings.detect_text:
        for module, option in _EXTRAS.items():
            if importlib.util.find_spec(module) is None:
                raise ConfigError(f"{option}: {module} is not installed; pip install 'cinesynth[text]'")
    if settings.aesthetic:
        for needed in ("clip/config.json", "predictor.safetensors"):
            if not (Path(settings.aesthetic) / needed).is_file():
                raise ConfigError(f"aesthetic: {settings.aesthetic}/{needed} is missing")
    for score, measured in (("text", settings.detect_text), ("aesthetic", bool(settings.aesthetic))):
        if score in settings.filters and not measured:
            name = "detect_text: true" if score == "text" else "aesthetic: FOLDER"
            raise ConfigError(f"filters.{score}: this score is not measured; set {name}, or remove the filter")


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
