"""What a study reads: the base model and its datasets, checked before anything is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cinesynth.errors import DatasetError
from cinesynth.locate import locate_dataset
from cinesynth.storage import Storage
from cinesynth.wan.placement import HEADROOM, Memory, device_bytes

if TYPE_CHECKING:
    from cinesynth.data.dataset import ClipsDataset
    from cinesynth.studies.config import StudyConfig

LONG_FRAMES = 129
"""Frames of a long clip at least: 128 of FVD-128, and one more, as lengths are 4n + 1."""
GPU_BYTES = 80_000_000_000
"""Memory that a GPU is taken to have: an A100's or H100's."""
_NOTHING = Memory(0, {}, {})
USES_LONG = ("rank_quality", "lora_vs_full")
"""The studies that make long clips."""


@dataclass(frozen=True)
class Inputs:
    """What cells are made of, by content.

    Attributes:
        base: hash of the model.
        datasets: the dataset, as the configuration names it, to the hash of its manifest.
        full: memory of training all weights.
        merged: memory of making videos with an fp32 base, as merged adapters need it.
    """

    base: str
    datasets: dict[str, str]
    full: Memory = _NOTHING
    merged: Memory = _NOTHING

    def hashes(self) -> dict[str, str]:
        """As the inputs of a run."""
        return {"base": self.base, **{f"dataset_{i}": value for i, value in enumerate(self.datasets.values())}}


def read_inputs(config: StudyConfig) -> Inputs:
    """Open and check what a study reads.

    Raises DatasetError for a dataset that lacks a split, that is too short for long clips, or that shares a file with
    what is trained on; ModelError for a model that cannot be read.
    """
    from cinesynth.wan.folder import base_hash

    storage = Storage.open(config.storage)
    names = [*config.domains.values(), *([config.long] if config.study in USES_LONG else [])]
    opened = {name: locate_dataset(storage, name) for name in names}
    home = opened[config.domains[config.home]]
    for split, why in (("train", "trains on"), ("val", "chooses the learning rate on")):
        if not home.windows(split):  # type: ignore[arg-type]
            raise DatasetError(
                f"domains.{config.home}: {config.domains[config.home]!r} has no window in its {split} split, which the "
                f"study {why}; raise the split's share, or add footage"
            )
    trained = {w.source_sha256 for w in home.windows("train")}
    for name, dataset in opened.items():
        _check_held_out(config, name, dataset, set() if dataset is home else trained)
    if config.study in USES_LONG:
        _check_long(config, opened[config.long])
    hashes = {name: dataset.manifest_sha256 for name, dataset in opened.items()}
    return Inputs(base_hash(config.model), hashes, full_memory(config, home), _merged_memory(config, home))


def _check_held_out(config: StudyConfig, name: str, dataset: ClipsDataset, trained: set[str]) -> None:
    windows = dataset.windows(config.generate.split)
    if not windows:
        raise DatasetError(f"dataset {name!r} has no window in its {config.generate.split} split; raise its share")
    if shared := sorted({w.source_uri for w in windows if w.source_sha256 in trained}):
        raise DatasetError(
            f"dataset {name!r} shares {len(shared)} files with the train split of "
            f"{config.domains[config.home]!r} (such as {shared[0]}): a study measures on what was never trained on; "
            "prepare it of other footage"
        )


def _check_long(config: StudyConfig, dataset: ClipsDataset) -> None:
    from cinesynth.wan.folder import model_spec

    short = min(w.num_frames for w in dataset.windows(config.generate.split))
    if short < LONG_FRAMES:
        fps = model_spec(config.model).family.fps
        seconds = math.ceil(10 * LONG_FRAMES / fps) / 10
        raise DatasetError(
            f"long: dataset {config.long!r} has windows of {short} frames, and the study needs at least {LONG_FRAMES}: "
            f"prepare it with window.num_frames={LONG_FRAMES} of shots of at least {seconds} s at {fps} fps"
        )


def too_large(memory: Memory, use_gpu: bool) -> str:
    """The arithmetic of what does not fit on one device; empty where it fits."""
    room = GPU_BYTES if use_gpu else device_bytes("cpu")
    if memory.on_each() <= HEADROOM * room:
        return ""
    return f"{memory.told()} is more than {HEADROOM:.0%} of a device's {room / 1e9:.0f} GB"


def full_memory(config: StudyConfig, dataset: ClipsDataset) -> Memory:
    """The memory of a step that trains all weights of the model on a dataset."""
    from cinesynth.train.memory import compute_dtype, training_memory
    from cinesynth.wan.folder import model_spec
    from cinesynth.wan.stream import StoredWeights

    weights, family = StoredWeights(config.model), model_spec(config.model).family
    train = config.train.model_copy(update={"mode": "full"})
    dtype = compute_dtype(train, train.use_gpu)
    return training_memory(train, family, weights.empty_transformer(), weights.bytes, dataset, dtype)


def _merged_memory(config: StudyConfig, dataset: ClipsDataset) -> Memory:
    import torch

    from cinesynth.generate.placing import generation_memory

    sizes = sorted({(w.num_frames, w.height, w.width) for w in dataset.windows(config.generate.split)})
    return generation_memory(config.model, torch.float32, sizes)
