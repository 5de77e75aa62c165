"""The rows of all networks of all sets: what is kept is read, what is missing is computed, and kept at once.

Work goes by the videos' ids: the real video of an id and those of all arms are decoded once, for every network that
misses a row of them. Batches are a function of the sorted ids, their shapes, the batch size and what is kept, and rows
go by what they are computed from: who runs the batches, and in which order, changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import decoder
from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics.features import Batch, Call, Executor, Networks, without_weights
from cinesynth.metrics.kept import KeptRow, KeptRows, KeptWork, RowKey
from cinesynth.metrics.metric import Network, Sample
from cinesynth.metrics.videos import Bucket, VideoFile, VideoSet

log = logging.getLogger("cinesynth.metrics")

Keys = dict[str, RowKey]
"""Id of a video to the key of its row."""


@dataclass
class NetworkRows:
    """What one network finds of all sets.

    Attributes:
        network: the network.
        keys: of each set, the real one first.
        unfit: why it cannot run on a set; None where it can.
        kept: where its rows are kept, if anywhere.
        rows: those that are there.
        devices: that computed them.
        unavailable: why it cannot run at all.
    """

    network: Network
    keys: list[Keys]
    unfit: list[str | None]
    kept: KeptRows | None = None
    rows: dict[RowKey, NDArray[np.float64]] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)
    unavailable: str | None = None

    @property
    def device(self) -> str:
        """The devices in words."""
        return " and ".join(sorted(self.devices)) or "none"

    @property
    def missing(self) -> set[RowKey]:
        """Keys of rows that are not there."""
        return {key for keys in self.keys for key in keys.values()} - self.rows.keys()

    def read(self) -> None:
        """Take the rows that are kept."""
        if self.kept is not None:
            for key, kept in self.kept.read(sorted(self.missing, key=str)).items():
                self._take(key, kept)

    def add(self, key: RowKey, kept: KeptRow) -> None:
        """Take a row that was computed, and keep it; NaN is not kept, as it may be a device's fault."""
        self._take(key, kept)
        if self.kept is not None and not np.isnan(kept.row).any():
            self.kept.write(key, kept)

    def _take(self, key: RowKey, kept: KeptRow) -> None:
        self.rows[key] = kept.row
        self.devices.add(kept.device)

    def samples(self, sets: Sequence[VideoSet], group_of: Mapping[str, str]) -> list[Sample]:
        """What it found of each set."""
        found = []
        for videos, keys, unfit in zip(sets, self.keys, self.unfit, strict=True):
            groups = {key: group_of[key] for key in videos.files}
            if reason := self.unavailable or unfit:
                found.append(Sample(videos.name, {}, groups, reason))
            else:
                found.append(Sample(videos.name, {name: self.rows[key] for name, key in keys.items()}, groups))
        return found


def find_rows(
    networks: Iterable[Network],
    sets: Sequence[VideoSet],
    captions: Mapping[str, str],
    settings: EvaluateSettings,
    executor: type[Executor],
    kept: KeptWork | None = None,
) -> dict[str, NetworkRows]:
    """The rows of all networks, by name: kept ones are read, the others computed and kept.

    Args:
        networks: that metrics need.
        sets: the real one first.
        captions: id to caption, for networks that read it.
        settings: of the evaluation.
        executor: who runs the networks that miss rows.
        kept: the kept work; None keeps nothing.

    Raises:
        MediaError: a file that changed since it was checked.
        WeightsUnavailable: weights that are absent, where `settings.require` is set.
        StorageError: a kept row of other weights under this one's name.
    """
    found = {network.name: wanted_rows(network, sets, captions, settings, kept) for network in networks}
    for of in found.values():
        wanted = len(of.missing)
        of.read()
        if of.rows:
            log.info("%s: %d of %d rows are kept", of.network.label, wanted - len(of.missing), wanted)
    models = Networks([of.network for of in found.values() if of.missing and not of.unavailable], settings)
    for name, reason in models.unavailable.items():
        found[name].unavailable = reason
    batches = batches_of(sets, [found[name] for name in models.names], captions, settings.batch_size)
    if batches:
        _run(batches, found, executor(models, settings))
    return found


def _run(batches: Sequence[Batch], found: Mapping[str, NetworkRows], executor: Executor) -> None:
    """Run batches; logs progress about every ten seconds."""
    total = sum(len(call.keys) for batch in batches for call in batch.calls)
    done, started = 0, time.monotonic()
    logged = started
    try:
        for place, outputs in executor.run(batches):
            for call, rows in zip(batches[place].calls, outputs, strict=True):
                for key, row in zip(call.keys, rows, strict=True):
                    found[call.network.name].add(key, KeptRow(row, executor.device))
                done += len(call.keys)
            now = time.monotonic()
            if now - logged > 10 or done == total:
                logged = now
                rate = (now - started) / done
                log.info("networks: %d/%d rows, %.2f s each, %.0f s left", done, total, rate, rate * (total - done))
    finally:
        executor.close()


def network_record(network: Network, settings: EvaluateSettings) -> dict[str, Any]:
    """All that a network's rows depend on beside videos and captions: what kept rows go by.

    Raises WeightsUnavailable where the weights cannot be named.
    """
    return {
        "network": network.name,
        "version": network.version,
        "weights": network.weights(settings),
        "preprocessing": dict(network.preprocessing),
        "dtype": network.dtype,
        "decoder": decoder(),
        "processor": "gpu" if settings.use_gpu else "cpu",
    }


def wanted_rows(
    network: Network,
    sets: Sequence[VideoSet],
    captions: Mapping[str, str],
    settings: EvaluateSettings,
    kept: KeptWork | None,
) -> NetworkRows:
    """What a network is to find: of a network that compares pairs, nothing of the real set itself."""
    real, keys, unfit = sets[0], list[Keys](), list[str | None]()
    for videos in sets:
        names = [n for n in videos.files if n in real.files and videos is not real] if network.pair else videos.files
        is_real_of_pairs = network.pair and videos is real
        reason = None if is_real_of_pairs else _unfit(network, real, videos, list(names))
        unfit.append(reason)
        keys.append({} if reason else {n: _key(network, real, videos, n, captions) for n in names})
    rows = NetworkRows(network, keys, unfit)
    try:
        record = network_record(network, settings)
        rows.kept = None if kept is None else kept.rows_of(record)
    except WeightsUnavailable as e:
        rows.unavailable = without_weights(e, settings)
    return rows


def _key(network: Network, real: VideoSet, videos: VideoSet, name: str, captions: Mapping[str, str]) -> RowKey:
    stop = videos.buckets[name].num_frames if network.count is None else network.start + network.count
    return RowKey(
        videos.contents[name].sha256,
        network.start,
        stop,
        real.contents[name].sha256 if network.pair else None,
        hashlib.sha256(captions[name].encode()).hexdigest() if network.caption else None,
    )


def _unfit(network: Network, real: VideoSet, videos: VideoSet, names: Sequence[str]) -> str | None:
    """Why a network cannot run on these videos of a set."""
    if not names:
        both = f"real has {next(iter(real.files))!r}, {videos.name} has {next(iter(videos.files))!r}"
        return f"{network.label} compares pairs, and no video name occurs in both folders: {both}"
    if network.fps and 0 in videos.fps:
        return f"{network.label} needs the frame rate, and a video of {videos.name} states none"
    for name in names:
        height, width = videos.sizes[name]
        if network.pair and real.sizes[name] != (height, width):
            real_height, real_width = real.sizes[name]
            files = f"{real.files[name]} is {real_width}x{real_height}, {videos.files[name]} is {width}x{height}"
            return f"{network.label} needs equal sizes: {files}"
        if min(height, width) < network.min_side:
            return f"{network.label} needs sides of at least {network.min_side}: {videos.files[name]} is smaller"
    return None


def batches_of(
    sets: Sequence[VideoSet], networks: Sequence[NetworkRows], captions: Mapping[str, str], size: int
) -> list[Batch]:
    """Batches for all rows that networks miss, each once; those of the same ids, of every set, are one turn.

    Args:
        sets: the real one first.
        networks: that run.
        captions: id to caption, for networks that read it.
        size: most ids of a turn.
    """
    missing = {of.network.name: of.missing for of in networks}
    names = sorted({n for of in networks for keys in of.keys for n, k in keys.items() if k in missing[of.network.name]})
    shapes: dict[tuple[Bucket | None, ...], list[str]] = {}
    for name in names:
        shapes.setdefault(tuple(videos.buckets.get(name) for videos in sets), []).append(name)
    turns = [of[i : i + size] for of in shapes.values() for i in range(0, len(of), size)]
    found = []
    for turn, of in enumerate(turns):
        calls = [_calls(networks, place, of, captions, missing) for place in range(len(sets))]
        most = max((key.stop for of_set in calls for call in of_set for key in call.keys), default=0)
        pairs = any(call.network.pair for of_set in calls for call in of_set)
        for videos, of_set in zip(sets, calls, strict=True):
            if of_set:
                frames = min(most, videos.buckets[of[0]].num_frames)  # all of a turn have one length in each set
                found.append(_batch(turn, frames, of, sets[0], videos, of_set, pairs))
    return found


def _calls(
    networks: Sequence[NetworkRows],
    place: int,
    names: Sequence[str],
    captions: Mapping[str, str],
    missing: Mapping[str, set[RowKey]],
) -> list[Call]:
    """Calls on the set at `place`, their items placed among `names`; what they give is missing no longer."""
    calls = []
    for of in networks:
        rows: dict[RowKey, int] = {}
        for i, name in enumerate(names):
            key = of.keys[place].get(name)
            if key in missing[of.network.name] and key is not None:
                rows.setdefault(key, i)
        if rows:
            missing[of.network.name].difference_update(rows)
            read = tuple(captions[names[i]] for i in rows.values()) if of.network.caption else ()
            calls.append(Call(of.network, tuple(rows.values()), tuple(rows), read))
    return calls


def _batch(
    turn: int, num_frames: int, names: Sequence[str], real: VideoSet, videos: VideoSet, calls: list[Call], pairs: bool
) -> Batch:
    """The batch of one set, of the videos that its calls see; `pairs`: another batch of its turn has pairs."""
    places = sorted({place for call in calls for place in call.places})
    moved = {place: i for i, place in enumerate(places)}
    files = tuple(videos.contents[names[place]] for place in places)
    partners: tuple[VideoFile, ...] = ()
    if any(call.network.pair for call in calls):
        partners = tuple(real.contents[names[place]] for place in places)
    placed = tuple(replace(call, places=tuple(moved[p] for p in call.places)) for call in calls)
    return Batch(turn, num_frames, files, placed, partners, pairs and videos is real)
