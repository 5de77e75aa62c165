"""Near-duplicate shots across a whole dataset, by perceptual hashes, joined through Ray Data.

Two hashes of 64 bits that differ in at most 7 bits agree in at least one of their 8 bytes. So only pictures that share
a byte at the same place are compared. Each of the 8 x 256 (place, byte) keys is a partition of the join.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cinesynth.data.config import DuplicateSettings
from cinesynth.data.scan.scan import FrameScores

BANDS, VALUES = 8, 256
MAX_SAMPLES = 2048  # of a shot: 17 minutes in which every sample differs
_SAME = 3  # bits up to which a picture repeats the one before it in its shot
_TINT = 12  # mean difference of 8x6 colours, at equal brightness, up to which two pictures may be the same
_GREY = 110  # the brightness
_AT_ONCE = 1 << 24  # comparisons

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pictures:
    """The samples of all shots: hashes [N] uint64, colours [N, 144] (at equal brightness), and the shot [N] of each."""

    hashes: NDArray[np.uint64]
    tints: NDArray[np.float32]
    shots: NDArray[np.int64]

    @classmethod
    def of(cls, shots: Iterable[Sequence[FrameScores]]) -> Pictures:
        """The different pictures of each shot, at most `MAX_SAMPLES`, evenly spread.

        What stands still counts once, and pictures without contrast are left out.
        """
        rows: list[tuple[int, bytes, int]] = []
        for number, samples in enumerate(shots):
            telling: list[FrameScores] = []
            for sample in samples:
                if sample.hash and (not telling or (sample.hash ^ telling[-1].hash).bit_count() > _SAME):
                    telling.append(sample)
            step = -(-len(telling) // MAX_SAMPLES) if telling else 1
            rows += [(s.hash, bytes.fromhex(s.tint), number) for s in telling[::step]]
        return cls(
            np.array([r[0] for r in rows], np.uint64),
            _at_equal_brightness(np.frombuffer(b"".join(r[1] for r in rows), np.uint8).reshape(len(rows), 144)),
            np.array([r[2] for r in rows], np.int64),
        )

    def alike(self, band: int, value: int, distance: int) -> NDArray[np.int64]:
        """Pairs [P, 2] of pictures of different shots whose byte `band` is `value`, and that are alike."""
        rows = np.flatnonzero((self.hashes >> np.uint64(8 * band)) & np.uint64(0xFF) == value)
        found = []
        step = max(1, _AT_ONCE // max(1, len(rows)))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            bits = np.bitwise_count(self.hashes[part][:, None] ^ self.hashes[rows][None])
            first, second = np.nonzero(bits <= distance)
            a, b = part[first], rows[second]
            keep = self.shots[a] < self.shots[b]
            a, b = a[keep], b[keep]
            tint = np.abs(self.tints[a] - self.tints[b]).mean(1)
            found.append(np.stack([a, b], 1)[tint <= _TINT])
        return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def _at_equal_brightness(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    given = colours.astype(np.float32)
    return given * (_GREY / np.maximum(given.mean(axis=1, keepdims=True), 1))


def near_duplicates(shots: Sequence[Sequence[FrameScores]], settings: DuplicateSettings) -> list[tuple[int, int]]:
    """Pairs of places in `shots` that show nearly the same; needs Ray where there is something to compare.

    Args:
        shots: the samples of each shot.
        settings: how alike two pictures must be, and how many of the shorter shot's.
    """
    pictures = Pictures.of(shots)
    if len(np.unique(pictures.shots)) < 2:
        return []
    alike = _joined(pictures, settings.distance)
    counts = np.bincount(pictures.shots, minlength=len(shots))
    ends = pictures.shots[alike]
    # The number of different pictures of each pair's shorter shot that resemble one of the other shot.
    shorter = np.where(counts[ends[:, 0]] <= counts[ends[:, 1]], 0, 1)
    own = np.take_along_axis(alike, shorter[:, None], axis=1)
    distinct = np.unique(np.concatenate([ends, own], axis=1), axis=0)
    pairs, matched = np.unique(distinct[:, :2], axis=0, return_counts=True)
    enough = matched >= settings.share * np.minimum(counts[pairs[:, 0]], counts[pairs[:, 1]])
    return [(int(a), int(b)) for a, b in pairs[enough]]


def clusters(pairs: Iterable[tuple[Key, Key]]) -> dict[Key, Key]:
    """Each key that occurs in a pair, with the smallest key that it is connected to."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {key: root(key) for key in parent}


def _joined(pictures: Pictures, distance: int) -> NDArray[np.int64]:
    """Pairs [P, 2] of pictures of different shots that are alike, some more than once."""
    import ray

    shared = ray.put(pictures)
    keys = [{"band": band, "value": value} for band in range(BANDS) for value in range(VALUES)]

    def join(batch: Any) -> Any:
        given: Pictures = ray.get(shared)
        pairs = [given.alike(int(b), int(v), distance) for b, v in zip(batch["band"], batch["value"], strict=True)]
        both = np.unique(np.concatenate(pairs), axis=0)
        return {"a": both[:, 0], "b": both[:, 1]}

    blocks = max(1, min(BANDS * VALUES, len(pictures.hashes) // 4000))
    dataset = ray.data.from_items(keys, override_num_blocks=blocks).map_batches(join, batch_size=None)
    found = [
        np.stack([batch["a"], batch["b"]], axis=1)
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy")
    ]
    return np.concatenate([np.zeros((0, 2), np.int64), *found])
