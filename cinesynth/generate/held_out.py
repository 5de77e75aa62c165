"""Held-out windows that an adapter makes again, each from the noise of its window, beside the real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from cinesynth.config import SamplerSettings
from cinesynth.data.dataset import ClipsDataset, Split, WindowRow, pixels_file
from cinesynth.data.spread import some_of
from cinesynth.data.video import write_video
from cinesynth.errors import DatasetError
from cinesynth.generate.denoise import Conditions
from cinesynth.pictures import Frames
from cinesynth.storage import scratch_folder
from cinesynth.wan.condition import ConditionEncoder
from cinesynth.wan.folder import model_spec

Made = TypeVar("Made")


def window_seed(seed: int, window_id: str) -> int:
    """The noise seed of a held-out window: the same for every arm, another for every window."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{window_id}".encode()).digest()[:4], "big") >> 1


def chosen_windows(dataset: ClipsDataset, split: Split, most: int | None, what: str) -> list[WindowRow]:
    """At most so many windows of a split, one of each group before a second; in the dataset's order.

    Raises DatasetError, with `what` needs them, when the split is empty.
    """
    windows = dataset.windows(split)
    if not windows:
        raise DatasetError(
            f"{what}: dataset {dataset.storage.uri} has no window in its {split} split; prepare it with split.{split} "
            f"above 0 and at least 3 groups a domain, or leave {what} out"
        )
    return some_of(windows, most)


class HeldOutVideos:
    """Some windows of a split, ready to be made again.

    Args:
        model: that makes them.
        dataset: that has them.
        split: that they are of.
        windows: of the split.
        sampler: how they are made.
        encoder: of a negative prompt; default: one of its own, on the CPU.
    """

    def __init__(
        self,
        model: str,
        dataset: ClipsDataset,
        split: Split,
        windows: list[WindowRow],
        sampler: SamplerSettings,
        encoder: ConditionEncoder | None = None,
    ) -> None:
        self.model, self.dataset, self.windows, self.sampler = model, dataset, windows, sampler
        self.fps = model_spec(model).family.fps
        self._staged = dataset.stage(scratch_folder("shards", dataset.manifest_sha256), split)
        self._places = {w.window_id: place for place, w in enumerate(dataset.windows(split))}
        self._negative = self._negative_prompt(encoder)

    def make(self, window_id: str, seed: int, make: Callable[[Conditions, SamplerSettings], Made]) -> Made:
        """Have a window made again by `make`. Its noise depends on the seed and the window only."""
        conditions = Conditions.of_row(self._staged[self._places[window_id]], self._negative)
        return make(conditions, self.sampler.model_copy(update={"seed": window_seed(seed, window_id)}))

    def write_real(self, folder: Path, suffix: str = "") -> None:
        """Write the real windows to a folder, named by their ids."""
        folder.mkdir(exist_ok=True)
        for window in self.windows:
            pixels = self.dataset.storage.read_bytes(pixels_file(window.window_id))
            (folder / f"{window.window_id}{suffix}.mkv").write_bytes(pixels)

    def write_made(self, made: Mapping[str, Frames], folder: Path, suffix: str = "") -> None:
        """Write videos, by window id, to a folder, losslessly and named as the real ones are."""
        folder.mkdir(exist_ok=True)
        for window_id, frames in made.items():
            write_video(folder / f"{window_id}{suffix}.mkv", frames, self.fps, "ffv1")

    def groups(self, suffix: str = "") -> dict[str, str]:
        """Name of each video to its group."""
        return {f"{w.window_id}{suffix}": w.group for w in self.windows}

    def _negative_prompt(self, encoder: ConditionEncoder | None) -> torch.Tensor | None:
        """What guidance leads away from; the empty prompt's embedding is in the dataset."""
        if self.sampler.guidance_scale <= 1:
            return None
        if not self.sampler.negative_prompt:
            return torch.as_tensor(self.dataset.empty_prompt_embeds())
        return (encoder or ConditionEncoder(self.model)).prompt_embeds(self.sampler.negative_prompt)
