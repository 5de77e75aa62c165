"""The configuration with which tests prepare a small dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cinesynth.config import PrepareConfig
from cinesynth.settings import parse_config
from cinesynth.storage import Storage

RESOURCES = {
    "decode": {"workers": 1, "cpus": 0.5},
    "vae": {"workers": 1, "cpus": 0.5},
    "clip": {"workers": 1, "cpus": 0.5},
    "text": {"workers": 1, "cpus": 0.5},
}


def prepare_config(footage: Path, storage: Path | str, /, **overrides: Any) -> PrepareConfig:
    """Of the dataset `clips` of a folder of footage."""
    values = {
        "name": "clips",
        "storage": str(storage),
        "footage": [{"path": str(footage), "domain": "scripted"}],
        "window": {"num_frames": [13, 9], "sizes": ["48x32", "32x48"], "max_per_shot": 3},
        "split": {"val": 0.3, "test": 0.4, "salt": "27"},
        "resources": RESOURCES,
        "shard_mb": 0.05,
        **overrides,
    }
    return parse_config(PrepareConfig, values)


def location(storage: Path) -> Storage:
    """Where `prepare_config` has its dataset."""
    return Storage.open(storage).child("datasets", "clips")
