"""Videos to network outputs: how they are batched, and who computes them.

Batches are a function of the sorted video ids, their shapes and the batch size alone, and outputs are put back in the
order of the ids: the number of workers changes nothing, and the batch size nothing beyond float32 rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import read_video
from cinesynth.errors import ConfigError, MediaError
from cinesynth.metrics.metric import Item, Metric, Network
from cinesynth.metrics.videos import Bucket
from cinesynth.pictures import Frames

log = logging.getLogger("cinesynth.metrics")


@dataclass(frozen=True)
class Batch:
    """Work for one call of a network.

    Attributes:
        network: its name.
        items: of one shape; each is one file, or the real and the arm's.
        num_frames: frames that count of every file.
        places: of the items among all of their set.
        captions: of the items, where the network reads them.
        start: the first of the frames that the network sees.
        fps: the network reads the frame rate: that of an item's last file is put behind its frames.
    """

    network: str
    items: tuple[tuple[Path, ...], ...]
    num_frames: int
    places: tuple[int, ...]
    captions: tuple[str, ...] = ()
    start: int = 0
    fps: bool = False

    def read(self) -> list[Item]:
        """The frames that count of every file: this many videos are in memory at once, never a whole set."""
        return [self._item(paths) for paths in self.items]

    def _item(self, paths: tuple[Path, ...]) -> Item:
        videos, rates = zip(*(self._video(path) for path in paths), strict=True)
        return (*videos, rates[-1]) if self.fps else videos

    def _video(self, path: Path) -> tuple[Frames, float]:
        frames, rate = read_video(path, self.num_frames)
        if len(frames) != self.num_frames:
            raise MediaError(f"{path} changed while it was evaluated; start again when nothing writes to it")
        return frames[self.start :], rate


def batches_of(
    network: Network,
    items: Sequence[tuple[Path, ...]],
    buckets: Sequence[Bucket],
    size: int,
    captions: Sequence[str] = (),
) -> list[Batch]:
    """Batches of at most `size` successive items of one bucket.

    Args:
        network: what they are for.
        items: see `Batch`.
        buckets: that of each item.
        size: most items.
        captions: of each item, where the network reads them.
    """
    places: dict[Bucket, list[int]] = {}
    for place, bucket in enumerate(buckets):
        places.setdefault(bucket, []).append(place)
    cut = [(bucket, tuple(of[i : i + size])) for bucket, of in places.items() for i in range(0, len(of), size)]
    return [
        Batch(
            network.name,
            tuple(items[i] for i in of),
            bucket.num_frames if network.count is None else network.start + network.count,
            of,
            tuple(captions[i] for i in of if captions),
            network.start,
            network.fps,
        )
        for bucket, of in cut
    ]


class Networks:
    """The networks that some metrics need, on the CPU until `to` moves them.

    Raises WeightsUnavailable (see `weights.locate`).
    """

    def __init__(self, metrics: Sequence[Metric], settings: EvaluateSettings) -> None:
        self._networks = {metric.network.name: metric.network for metric in metrics}
        self._models: dict[str, Any] = {
            name: None if network.load is None else network.load(settings) for name, network in self._networks.items()
        }
        self.device = torch.device("cpu")

    @property
    def names(self) -> list[str]:
        """Of the networks."""
        return list(self._networks)

    def to(self, device: str) -> Networks:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        for model in self._models.values():
            if model is not None:
                model.to(self.device)
        return self

    def run(self, network: str, items: Sequence[Item], captions: Sequence[str] = ()) -> NDArray[np.float64]:
        """One row for each item: features [B, d], or numbers for each frame [B, T]; float32 without TF32."""
        given = [(*item, caption) for item, caption in zip(items, captions, strict=True)] if captions else items
        with torch.inference_mode(), _whole_float32():
            return np.asarray(self._networks[network].run(self._models[network], given), np.float64)


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


class Executor(Protocol):
    """Who runs batches. `device` names where, for the record."""

    device: str

    def __init__(self, networks: Networks, settings: EvaluateSettings) -> None: ...

    def run(self, batches: Sequence[Batch]) -> Iterator[NDArray[np.float64]]:
        """The output of every batch, in order."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class LocalExecutor:
    """Runs batches one after the other in this process."""

    def __init__(self, networks: Networks, settings: EvaluateSettings) -> None:
        self._networks = networks.to(pick_device(settings.use_gpu))
        self.device = device_name(self._networks.device)

    def run(self, batches: Sequence[Batch]) -> Iterator[NDArray[np.float64]]:
        for batch in batches:
            yield self._networks.run(batch.network, batch.read(), batch.captions)

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


def extract(executor: Executor, batches: Sequence[Batch], what: str) -> list[NDArray[np.float64]]:
    """The output of every item, in the order of the items; logs progress about every ten seconds."""
    total = sum(len(b.items) for b in batches)
    started = logged = time.monotonic()
    found: dict[int, NDArray[np.float64]] = {}
    for batch, output in zip(batches, executor.run(batches), strict=True):
        found |= zip(batch.places, output, strict=True)
        now, done = time.monotonic(), len(found)
        if now - logged > 10 or done == total:
            logged = now
            rate = (now - started) / done
            log.info("%s: %d/%d videos, %.2f s each, %.0f s left", what, done, total, rate, rate * (total - done))
    return [found[place] for place in range(total)]
