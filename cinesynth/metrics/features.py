"""Batches of videos: decoded once for all networks that see them, and who runs these.

A batch is of one set and one shape. A thread decodes the next one while networks run on the current one. The real
videos of a batch of pairs are decoded once for all sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import read_video
from cinesynth.errors import ConfigError, MediaError, WeightsUnavailable
from cinesynth.metrics.kept import RowKey
from cinesynth.metrics.metric import Item, Network
from cinesynth.metrics.videos import VideoFile
from cinesynth.pictures import Frames


@dataclass(frozen=True)
class Decoded:
    """A video of a batch.

    Attributes:
        frames: uint8 RGB [T, H, W, 3].
        fps: frames per second; 0 where the file does not state it.
        real: the real one of its name, where the batch has pairs.
    """

    frames: Frames
    fps: float
    real: Frames | None = None


@dataclass(frozen=True)
class Call:
    """One call of a network.

    Attributes:
        network: it.
        places: of its items among the videos of the batch.
        keys: of the rows that it gives, one an item.
        captions: of the items, where the network reads them.
    """

    network: Network
    places: tuple[int, ...]
    keys: tuple[RowKey, ...]
    captions: tuple[str, ...] = ()

    def items(self, decoded: Sequence[Decoded]) -> list[Item]:
        """What the network sees: the frames of its range, the real ones first in pairs, then rate and caption."""
        found: list[Item] = []
        for i, (place, key) in enumerate(zip(self.places, self.keys, strict=True)):
            of = decoded[place]
            item: list[Any] = [frames[key.start : key.stop] for frames in self._videos(of)]
            item += [of.fps] if self.network.fps else []
            item += [self.captions[i]] if self.network.caption else []
            found.append(tuple(item))
        return found

    def _videos(self, of: Decoded) -> list[Frames]:
        if not self.network.pair:
            return [of.frames]
        assert of.real is not None
        return [of.real, of.frames]


@dataclass(frozen=True)
class Batch:
    """Videos of one set and one shape, and what networks see of them.

    Attributes:
        turn: batches of one turn are of the same ids, and successive.
        num_frames: first frames of every file that are decoded.
        videos: of the set.
        calls: of networks.
        partners: the real video of each, where a call is of pairs.
        held: its frames are kept for the other batches of its turn.
    """

    turn: int
    num_frames: int
    videos: tuple[VideoFile, ...]
    calls: tuple[Call, ...]
    partners: tuple[VideoFile, ...] = ()
    held: bool = False


class Reader:
    """Decodes batches, given in their order. It holds the real videos of a turn, and no others."""

    def __init__(self) -> None:
        self._turn = -1
        self._held: dict[Path, Decoded] = {}

    def read(self, batch: Batch) -> list[Decoded]:
        """The videos of a batch. Raises MediaError for a file that does not decode, or has changed since its check."""
        if batch.turn != self._turn:
            self._turn, self._held = batch.turn, {}
        for file in (*batch.partners, *(batch.videos if batch.held else ())):
            if file.path not in self._held:
                self._held[file.path] = _decode(file, batch.num_frames)
        if batch.held:
            return [self._held[file.path] for file in batch.videos]
        found = [_decode(file, batch.num_frames) for file in batch.videos]
        if not batch.partners:
            return found
        return [replace(of, real=self._held[file.path].frames) for of, file in zip(found, batch.partners, strict=True)]


def _decode(file: VideoFile, num_frames: int) -> Decoded:
    frames, fps = read_video(file.path, num_frames)
    file.check()
    if len(frames) != num_frames:
        raise MediaError(f"{file.path} changed while it was evaluated; start again when nothing writes to it")
    return Decoded(frames, fps)


def read_ahead(batches: Sequence[Batch]) -> Iterator[tuple[int, list[Decoded]]]:
    """Place and frames of every batch, in order. A thread decodes the next one meanwhile, never two."""
    reader = Reader()
    with ThreadPoolExecutor(1, "decode") as pool:
        following = pool.submit(reader.read, batches[0])
        for place in range(len(batches)):
            decoded = following.result()
            if place + 1 < len(batches):
                following = pool.submit(reader.read, batches[place + 1])
            yield place, decoded
            del decoded


class Networks:
    """Networks with their weights, on the CPU until `to` moves them.

    Attributes:
        unavailable: network to why it has no weights.

    Raises WeightsUnavailable where weights are absent and `settings.require` is set.
    """

    def __init__(self, networks: Sequence[Network], settings: EvaluateSettings) -> None:
        self.unavailable: dict[str, str] = {}
        self._networks: dict[str, Network] = {}
        self._models: dict[str, Any] = {}
        for network in networks:
            try:
                self._models[network.name] = None if network.load is None else network.load(settings)
                self._networks[network.name] = network
            except WeightsUnavailable as e:
                self.unavailable[network.name] = without_weights(e, settings)
        self.device = torch.device("cpu")

    @property
    def names(self) -> list[str]:
        """Of the networks that have their weights."""
        return list(self._networks)

    def to(self, device: str) -> Networks:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        for model in self._models.values():
            if model is not None:
                model.to(self.device)
        return self

    def run(self, network: str, items: Sequence[Item]) -> NDArray[np.float64]:
        """One row for each item: features [B, d], or numbers for each frame [B, T]; float32 without TF32."""
        with torch.inference_mode(), _whole_float32():
            return np.asarray(self._networks[network].run(self._models[network], items), np.float64)

    def run_all(self, calls: Sequence[Call], decoded: Sequence[Decoded]) -> list[NDArray[np.float64]]:
        """The rows of each call on the videos of a batch."""
        return [self.run(call.network.name, call.items(decoded)) for call in calls]


@contextmanager
def _whole_float32() -> Iterator[None]:
    """No TF32, in convolutions as in products of matrices, whatever this process has set for its own work."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.fp32_precision = before


def without_weights(error: WeightsUnavailable, settings: EvaluateSettings) -> str:
    """The reason of a metric without its weights. Raises the error again where all weights are required."""
    if settings.require:
        raise error
    return f"{NO_WEIGHTS}{error}"


NO_WEIGHTS = "no weights: "
"""What the reason of a metric begins with that is unavailable because its weights are."""


class Executor(Protocol):
    """Who runs batches. `device` names where, for the record."""

    device: str

    def __init__(self, networks: Networks, settings: EvaluateSettings) -> None: ...

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[int, list[NDArray[np.float64]]]]:
        """Place of a batch and the output of its calls, of every batch, in any order."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class LocalExecutor:
    """Runs batches one after the other in this process."""

    def __init__(self, networks: Networks, settings: EvaluateSettings) -> None:
        self._networks = networks.to(pick_device(settings.use_gpu))
        self.device = device_name(self._networks.device)

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[int, list[NDArray[np.float64]]]]:
        for place, decoded in read_ahead(batches):
            yield place, self._networks.run_all(batches[place].calls, decoded)

    def close(self) -> None:
        pass


def pick_device(use_gpu: bool) -> str:
    """`cuda` or `cpu`. Raises ConfigError when a GPU is asked for and torch sees none."""
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError("use_gpu = True: torch sees no CUDA device here; set use_gpu=false or use a GPU node")
    return "cuda" if use_gpu else "cpu"


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
