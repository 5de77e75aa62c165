"""Kept work of evaluations: what networks found of videos, and what the check of a video found.

`<storage>/features/<network>-<hash>/<hash>.npz` holds one row, `<storage>/features/checked/<hash>.json` the facts of
one video. The name is the sha256 of all that the content depends on: whoever computes the same writes the same object,
so several evaluations may share a storage at the same time, and nothing is listed, merged or locked. An object is
written whole as soon as its row is there. One that is damaged is told of, and computed again.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.data.video import VideoFacts, decoder
from cinesynth.errors import StorageError
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger("cinesynth.metrics")

_READERS = 8  # objects that are read at once: an object store answers each after some time


@dataclass(frozen=True)
class RowKey:
    """What one row of a network is computed from, by content.

    Attributes:
        video: sha256 of the file.
        start: first frame that the network sees, 0-based.
        stop: frame after the last one.
        real: sha256 of the real video's file, of a pair.
        caption: sha256 of the caption, where the network reads it.
    """

    video: str
    start: int
    stop: int
    real: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class KeptRow:
    """A row, bit for bit as it was computed, and the device that computed it."""

    row: NDArray[np.float64]
    device: str


class KeptWork:
    """The kept work of all evaluations of a storage.

    Args:
        storage: its root, which holds `runs/`.
    """

    def __init__(self, storage: Storage) -> None:
        self.folder = storage.child("features")

    def rows_of(self, network: Mapping[str, Any]) -> KeptRows:
        """The rows of one network; `network` is all that its numbers depend on, beside the videos, as JSON values."""
        return KeptRows(self.folder.child(f"{network['network']}-{sha256_json(network)[:16]}"), network)

    def facts(self, sha256: str, num_frames: int | None) -> VideoFacts | None:
        """What the check of the first frames of a video (None: all) found, if it is kept."""
        name = _facts_name(sha256, num_frames)
        if (data := _read(self.folder, name)) is None:
            return None
        try:
            held = json.loads(data)
            if held["sha256"] != sha256_json(held["facts"]):
                raise ValueError("its content has another sha256")
            return VideoFacts(**held["facts"])
        except (ValueError, KeyError, TypeError) as e:
            _tell_damage(self.folder, name, e)
            return None

    def keep_facts(self, sha256: str, num_frames: int | None, facts: VideoFacts) -> None:
        """Keep what a check found."""
        held = asdict(facts)
        self.folder.write_json(_facts_name(sha256, num_frames), {"facts": held, "sha256": sha256_json(held)})


class KeptRows:
    """Kept rows of one network. Make it with `KeptWork.rows_of`."""

    def __init__(self, folder: Storage, network: Mapping[str, Any]) -> None:
        self.folder = folder
        self.network = json.loads(json.dumps(network))

    def read(self, keys: Iterable[RowKey]) -> dict[RowKey, KeptRow]:
        """The rows that are there, by key.

        Raises StorageError, with both values, for an object that holds another row than its name says: somebody put it
        there.
        """
        wanted = list(keys)
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(wanted, pool.map(self._read, wanted), strict=True)
            return {key: kept for key, kept in found if kept is not None}

    def write(self, key: RowKey, kept: KeptRow) -> None:
        """Keep a row: as float32 where that loses nothing."""
        with np.errstate(over="ignore"):
            small = kept.row.astype(np.float32)
        row = small if np.array_equal(small.astype(np.float64), kept.row) else kept.row
        about = json.dumps({"of": self._identity(key), "device": kept.device}, sort_keys=True).encode()
        data = io.BytesIO()
        np.savez(data, row=row, about=np.frombuffer(about, np.uint8))
        self.folder.write_bytes(self._name(key), data.getvalue())

    def _read(self, key: RowKey) -> KeptRow | None:
        name = self._name(key)
        if (data := _read(self.folder, name)) is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as held:
                row, about = held["row"], json.loads(held["about"].tobytes())
            device, found = str(about["device"]), about["of"].items()
        except Exception as e:  # a damaged zip file fails in many ways; its CRC-32 finds a changed byte
            _tell_damage(self.folder, name, e)
            return None
        self._check(name, dict(found), self._identity(key))
        return KeptRow(np.asarray(row, np.float64), device)

    def _identity(self, key: RowKey) -> dict[str, Any]:
        return {**self.network, **asdict(key)}

    def _name(self, key: RowKey) -> str:
        return f"{sha256_json(self._identity(key))}.npz"

    def _check(self, name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Raise StorageError where an object is of something else than its name says."""
        differ = [field for field in sorted({*found, *wanted}) if found.get(field) != wanted.get(field)]
        if differ:
            both = "; ".join(f"{field} {found.get(field)!r}, not {wanted.get(field)!r}" for field in differ)
            where = f"{self.folder.uri}/{name}"
            raise StorageError(f"{where} holds features of other weights, or of another video ({both}); remove it")


def _facts_name(sha256: str, num_frames: int | None) -> str:
    return f"checked/{sha256_json([sha256, num_frames, decoder()])}.json"


def _read(folder: Storage, name: str) -> bytes | None:
    try:
        return folder.read_bytes(name)
    except StorageError:  # it is not there
        return None


def _tell_damage(folder: Storage, name: str, error: Exception) -> None:
    why = f"{type(error).__name__}: {error}"
    log.warning("%s/%s is damaged (%s): it is passed over, and made again", folder.uri, name, why)
