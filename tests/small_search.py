"""A search of two points around a baseline, of trainings of two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cinesynth.config import TuneConfig
from cinesynth.settings import parse_config
from tests.conftest import Head


def small_search(head: Head, storage: Path, **changes: Any) -> TuneConfig:
    """The search of `clips` in a storage on a head, with some fields other than these."""
    values = {
        "name": "study",
        "storage": str(storage),
        "ray": {"address": head.address},
        "dataset": "clips",
        "train": {
            "lora": {"rank": 4, "alpha": 4},
            "optimizer": {"steps": 2, "lr": 1e-3, "batch_size": 2},
            "validation": {"sigmas": [0.5], "max_windows": 1},
        },
        "space": {"rank": [2, 8], "alpha_over_rank": None, "lr": [1e-4, 1e-2]},
        "objectives": ["lpips", "lpips_late"],
        "baseline_seeds": 1,
        "final_seeds": 1,
        "sampler": {"steps": 2, "guidance_scale": 1.0},
        "budget": {"trials": 2},
        "concurrency": 1,
    }
    return parse_config(TuneConfig, {**values, **changes})
