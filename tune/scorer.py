"""Scoring of trials: an actor of the study's driver that keeps the model. What networks find is kept in the storage."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import EvaluateSettings, TuneConfig
from cinesynth.data.dataset import ClipsDataset, Split, WindowRow
from cinesynth.errors import DatasetError
from cinesynth.generate.held_out import HeldOutVideos, chosen_windows
from cinesynth.generate.sampler import Generator
from cinesynth.locate import adapter_chain, locate_adapter
from cinesynth.metrics.evaluate import compare, computable
from cinesynth.metrics.kept import KeptWork
from cinesynth.metrics.record import MetricsRecord
from cinesynth.pictures import Frames
from cinesynth.settings import parse_config
from cinesynth.storage import Storage

SCRATCH = "cinesynth-scores-"
"""Prefix of the temporary folders that videos are measured in."""


def scoring(config: TuneConfig, windows: list[WindowRow]) -> EvaluateSettings:
    """What trials are measured by: the objectives, and FVD and KVD where the windows are long enough for them.

    Raises DatasetError where they are too short for an objective.
    """
    frames = min(window.num_frames for window in windows)
    given = {"r_lpips_weights": config.r_lpips_weights, "use_gpu": config.train.use_gpu, "require": True}
    asked = EvaluateSettings(metrics=list(config.objectives), **given)
    computable(asked, frames)
    both = [name for name in ("fvd", "kvd") if name not in config.objectives]
    everything = EvaluateSettings(metrics=[*config.objectives, *both], **given)
    try:
        computable(everything, frames)
    except DatasetError:
        return asked
    return everything


class Scorer:
    """An actor: makes held-out windows again with a trial's adapter, and measures them.

    Args:
        task: `config` of the study, and `dataset` (a storage reference).
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.config = parse_config(TuneConfig, task["config"])
        self.storage = Storage.open(self.config.storage)
        self.dataset = ClipsDataset.open(Storage(*task["dataset"]))
        self.generator = Generator(self.config.model, "cuda" if torch.cuda.is_available() else "cpu")
        self._val = self._videos("val")
        self._kept = KeptWork(self.storage)

    def __repr__(self) -> str:
        return f"Scorer({self.config.name})"

    def score(self, run: str | None) -> dict[str, Any]:
        """Figures of the val split with a run's adapter; None: of the base model.

        Returns `figures` by metric, `windows`, and `seconds` of generation and of measurement.
        """
        started = time.monotonic()
        made = self._make(self._val, run, self.config.train.seed)
        generated = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            root = Path(scratch)
            self._val.write_real(root / "real")
            self._val.write_made(made, root / "made")
            settings = scoring(self.config, self._val.windows)
            record = compare(root / "real", {"trial": root / "made"}, self._val.groups(), settings, kept=self._kept)
        return {
            "figures": {value.metric: value.value for value in record.values if value.value is not None},
            "windows": len(made),
            "generate_seconds": round(generated - started, 1),
            "measure_seconds": round(time.monotonic() - generated, 1),
        }

    def final(self, runs: dict[str, list[tuple[str, int]]]) -> dict[str, Any]:
        """Compare arms on the test split; returns the metrics record as JSON.

        Args:
            runs: arm, the baseline first, to its runs, each with a seed for the noise. A window that an arm makes with
                several runs is as many videos of one group.
        """
        test = self._videos("test")
        groups: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            root = Path(scratch)
            for place, seed in enumerate(seed for _, seed in next(iter(runs.values()))):
                suffix = f"-{seed}"
                test.write_real(root / "real", suffix)
                groups |= test.groups(suffix)
                for arm, made in runs.items():
                    test.write_made(self._make(test, *made[place]), root / arm, suffix)
            settings = scoring(self.config, test.windows)
            arms = {arm: root / arm for arm in runs}
            record: MetricsRecord = compare(root / "real", arms, groups, settings, kept=self._kept)
        return dict(record.to_json())

    def _videos(self, split: Split) -> HeldOutVideos:
        windows = chosen_windows(self.dataset, split, self.config.max_windows, "tune")
        return HeldOutVideos(self.config.model, self.dataset, split, windows, self.config.sampler)

    def _make(self, videos: HeldOutVideos, run: str | None, seed: int) -> dict[str, Frames]:
        adapters = [] if run is None else adapter_chain(self.storage, [(run, 1.0)])
        self.generator.load_adapters([(locate_adapter(self.storage, ref), scale) for ref, scale in adapters])
        return {
            w.window_id: videos.make(
                w.window_id, seed, lambda c, sampler: self.generator.generate_from(c, sampler).frames
            )
            for w in videos.windows
        }
