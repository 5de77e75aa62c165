"""A small clips dataset that the prepare job made of scripted clips."""

from __future__ import annotations

from pathlib import Path

from cinesynth.config import PrepareConfig
from cinesynth.data.prepare import prepare
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from tests.conftest import Head


def prepare_clips(head: Head, folder: Path, clips: int, split: dict[str, float]) -> Path:
    """Prepare the dataset `clips`, a window of nine frames of each shot; returns the storage location."""
    write_scripted_clips(folder / "footage", clips, seed=1)
    values = {
        "name": "clips",
        "storage": str(folder / "storage"),
        "ray": {"address": head.address},
        "footage": [{"path": str(folder / "footage")}],
        "window": {"num_frames": 9, "sizes": "96x64", "max_per_shot": 1},
        "split": split,
    }
    config = parse_config(PrepareConfig, values)
    with ray_session(config):
        prepare(config)
    return folder / "storage"
