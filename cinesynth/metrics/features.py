"""Folders of videos to network outputs: what is read, how it is paired and batched, and who computes it.

Batches are a function of the sorted video ids and the batch size alone, and outputs are put back in that order: the
number of workers changes nothing, and the batch size nothing beyond float32 rounding.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray

from cinesynth.config import EvaluateSettings
from cinesynth.data.config import VIDEO_SUFFIXES
from cinesynth.data.video import read_video
from cinesynth.errors import ConfigError, DatasetError, MediaError
from cinesynth.metrics.metric import Metric, Network
from cinesynth.pictures import Frames
from cinesynth.storage import sha256_file, sha256_json

log = logging.getLogger("cinesynth.metrics")


@dataclass(frozen=True)
class VideoSet:
    """A folder of videos of one length.

    Attributes:
        name: `real`, or the arm's name.
        files: id (path below the folder, without suffix) to file, sorted by id.
        sizes: id to (height, width).
        num_frames: frames of every video that count.
        fps: average frame rates that occur.
        codecs: codecs that occur.
    """

    name: str
    files: dict[str, Path]
    sizes: dict[str, tuple[int, int]]
    num_frames: int
    fps: frozenset[float]
    codecs: frozenset[str]


def list_videos(name: str, folder: Path) -> dict[str, Path]:
    """Id to file of every video below `folder`, sorted by id.

    Raises DatasetError when there is none, or two share an id (`a.mp4` and `a.mkv`).
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in VIDEO_SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        key = relative.with_suffix("").as_posix()
        if key in found:
            raise DatasetError(f"{name}: {found[key]} and {path} have one name; keep one of them")
        found[key] = path
    if not found:
        raise DatasetError(f"{name}: {folder} holds no video file ({', '.join(VIDEO_SUFFIXES)})")
    return dict(sorted(found.items()))


def content_hash(files: Mapping[str, Path]) -> str:
    """Sha256 over the ids and the contents of the files."""
    return sha256_json({key: sha256_file(path) for key, path in files.items()})


def open_sets(folders: Mapping[str, Path], frames: int | None) -> list[VideoSet]:
    """Decode every video once to know what it is, before any network runs.

    Args:
        folders: set name to folder.
        frames: count only the first frames of each video; None: all, and all videos must be equally long.

    Raises:
        DatasetError: a folder without videos, or videos of unequal length, naming the two files.
        MediaError: a video that cannot be decoded or has fewer than `frames` frames.
    """
    sets: list[VideoSet] = []
    first: tuple[Path, int] | None = None
    for name, folder in folders.items():
        files = list_videos(name, folder)
        sizes, rates, codecs = {}, set(), set()
        for key, path in files.items():
            video, fps = read_video(path)
            count = len(video) if frames is None else frames
            if len(video) < count:
                raise MediaError(f"{path} has {len(video)} frames, fewer than frames={count}; lower it")
            first = first or (path, count)
            if count != first[1]:
                raise DatasetError(
                    f"{path} has {count} frames, {first[0]} has {first[1]}; metrics compare videos of one length: "
                    f"cut them, or set frames={min(count, first[1])} to use the first frames of each"
                )
            sizes[key] = (video.shape[1], video.shape[2])
            rates.add(round(fps, 3))
            codecs.add(_codec(path))
        assert first is not None
        sets.append(VideoSet(name, files, sizes, first[1], frozenset(rates), frozenset(codecs)))
    return sets


def _codec(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name


def parse_groups(text: str, where: str) -> dict[str, str]:
    """Video id to group from CSV text with the columns `video` (id or file name) and `group`.

    Raises ConfigError for missing columns or a video with two groups.
    """
    rows = csv.DictReader(io.StringIO(text))
    if not {"video", "group"} <= set(rows.fieldnames or []):
        raise ConfigError(f"groups: {where} needs the columns video, group; it has {', '.join(rows.fieldnames or [])}")
    groups: dict[str, str] = {}
    for row in rows:
        name = row["video"]
        key = _id_of(name)
        if groups.setdefault(key, row["group"]) != row["group"]:
            raise ConfigError(f"groups: {where} gives {name} the groups {groups[key]!r} and {row['group']!r}; keep one")
    return groups


def parse_captions(text: str) -> dict[str, str]:
    """Video id to caption, from the column `caption` of the text that `parse_groups` reads; empty without one."""
    rows = csv.DictReader(io.StringIO(text))
    if not {"video", "caption"} <= set(rows.fieldnames or []):
        return {}
    return {_id_of(row["video"]): row["caption"] or "" for row in rows}


def _id_of(name: str) -> str:
    return Path(name).with_suffix("").as_posix() if Path(name).suffix.lower() in VIDEO_SUFFIXES else name


def assign_groups(sets: Sequence[VideoSet], groups: Mapping[str, str] | None) -> dict[str, str]:
    """Group of every video id; without a mapping each id is a group of its own.

    Raises ConfigError naming videos that the mapping leaves out.
    """
    ids = sorted({key for s in sets for key in s.files})
    if groups is None:
        return {key: key for key in ids}
    missing = [key for key in ids if key not in groups]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(f"groups: no group is given for {', '.join(missing[:3])}{more}; add their rows")
    return {key: groups[key] for key in ids}


@dataclass(frozen=True)
class Batch:
    """Work for one call of a network: per item one file, or the real and the arm's; and a caption where it reads it."""

    network: str
    items: tuple[tuple[Path, ...], ...]
    num_frames: int
    captions: tuple[str, ...] = ()

    def read(self) -> list[tuple[Frames, ...]]:
        """The frames that count of every file."""
        return [tuple(read_video(path)[0][: self.num_frames] for path in item) for item in self.items]


def batches_of(
    network: Network, items: Sequence[tuple[Path, ...]], num_frames: int, size: int, captions: Sequence[str] = ()
) -> list[Batch]:
    """Consecutive batches of at most `size` items; a caption for each item where the network reads captions."""
    return [
        Batch(network.name, tuple(items[i : i + size]), num_frames, tuple(captions[i : i + size]))
        for i in range(0, len(items), size)
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

    def to(self, device: str) -> Networks:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        for model in self._models.values():
            if model is not None:
                model.to(self.device)
        return self

    def run(
        self, network: str, items: Sequence[tuple[Frames, ...]], captions: Sequence[str] = ()
    ) -> NDArray[np.float64]:
        """One row for each item: features [B, d], or numbers for each frame [B, T]; float32 without TF32."""
        given = [(*item, caption) for item, caption in zip(items, captions, strict=True)] if captions else items
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return np.asarray(self._networks[network].run(self._models[network], given), np.float64)


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


def extract(executor: Executor, batches: Sequence[Batch], what: str) -> NDArray[np.float64]:
    """Outputs of all batches in order, as one array; logs progress about every ten seconds."""
    total = sum(len(b.items) for b in batches)
    started = logged = time.monotonic()
    outputs: list[NDArray[np.float64]] = []
    done = 0
    for output in executor.run(batches):
        outputs.append(output)
        done += len(output)
        now = time.monotonic()
        if now - logged > 10 or done == total:
            logged = now
            rate = (now - started) / done
            log.info("%s: %d/%d videos, %.2f s each, %.0f s left", what, done, total, rate, rate * (total - done))
    return np.concatenate(outputs)
