"""Shards and their commits: each encoded window becomes part of a dataset once, even when processes are killed.

The driver collects references to encoded blocks until they fill a shard. A task writes the shard under a new name. The
driver then commits it as a small numbered object. A window that is in no commit is encoded again.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cinesynth.data.dataset import read_table, row_sha256, tensor_fields, window_columns, write_shard
from cinesynth.data.encode.encode import STAGES
from cinesynth.data.records import Reject, prompt_file, row_id, window_from_json
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage
from cinesynth.wan.family import Family

log = logging.getLogger(__name__)

RETRIED = ("decode_failed", "encode_failed", "annotate_failed")
"""Reasons that say nothing of the footage: the next run tries these windows again."""

_WAITING = 64


class Commits:
    """The commits of a dataset, in order. They say which shards count, and which rows need no encoding.

    Args:
        dataset: holds and takes them.
        check_alone: raises when another driver took the run over; called before each commit.
    """

    def __init__(self, dataset: Storage, check_alone: Callable[[], None] = lambda: None) -> None:
        self._dataset, self._check_alone = dataset, check_alone
        names = dataset.list("commits")
        with ThreadPoolExecutor(16) as pool:
            self._entries: list[dict[str, Any]] = list(pool.map(dataset.read_json, names))
        self._next = 1 + max((int(name.rsplit("/", 1)[-1].partition(".")[0]) for name in names), default=-1)
        self.done = {row for entry in self._entries for row in _settled(entry)}
        self._writer = uuid.uuid4().hex
        self._last = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._entries)

    def add(self, commit: dict[str, Any]) -> None:
        """Write one commit. Raises what `verify` does."""
        self.verify()
        name = self._name_of_next()
        data = json.dumps(commit | {"by": self._writer}, indent=1).encode()
        if not self._dataset.write_new(name, data):
            raise self._not_alone(name)
        self._last = name
        self._next += 1
        self._entries.append(commit)
        self.done |= _settled(commit)

    def verify(self) -> None:
        """Raise when another run writes the dataset, too.

        RunTaken where it took the run over; DatasetError where it has committed since, or has written over the last
        commit, as it may on an object store.
        """
        self._check_alone()
        if self._dataset.exists(self._name_of_next()):
            raise self._not_alone(self._name_of_next())
        if self._last and self._dataset.read_json(self._last)["by"] != self._writer:
            raise self._not_alone(self._last)

    def _name_of_next(self) -> str:
        return f"commits/{self._next:06d}.json"

    def _not_alone(self, name: str) -> DatasetError:
        return DatasetError(
            f"another run of prepare writes {self._dataset.uri} at the same time ({name} is its); "
            "stop one of the two, then give the command again: it goes on from what is committed"
        )

    def places(self) -> dict[str, dict[str, Any]]:
        """Row id to its place (`shard`, `row`), the `sha256` of its tensors, and `pixels_sha256` of its kept video."""
        return {
            entry["row_id"]: {"shard": commit["shard"]["file"], "row": number}
            | {name: entry[name] for name in ("sha256", "pixels_sha256")}
            for commit in self._entries
            for number, entry in enumerate(commit["rows"])
        }

    def rejects(self, rows: Container[str]) -> list[Reject]:
        """The rejects of those `rows` that were not encoded later, sorted by window_id."""
        encoded = {row["row_id"] for commit in self._entries for row in commit["rows"]}
        latest = {key: Reject(**reject) for commit in self._entries for key, reject in commit["rejected"].items()}
        found = [reject for key, reject in latest.items() if key in rows and key not in encoded]
        return sorted(found, key=lambda reject: reject.window_id)


def _settled(commit: dict[str, Any]) -> set[str]:
    encoded = {row["row_id"] for row in commit["rows"]}
    return encoded | {key for key, reject in commit["rejected"].items() if reject["reason"] not in RETRIED}


# --- writing -------------------------------------------------------------------------------------------------


@dataclass
class _Pending:
    """Encoded blocks that wait to become a shard."""

    refs: list[Any] = field(default_factory=list)
    size: int = 0
    since: float = 0.0


class ShardWriter:
    """Collects encoded blocks into shards by size and age, and commits what has been written.

    Args:
        dataset: takes the shards.
        commits: of the dataset.
        family: of the model that it is encoded for.
        encoder_hash: recorded in every row.
        shard_bytes, shard_s: a shard is written at this size, or when its first block has waited this long.
        report: called with (arrived rows, 0) for each block, and with (0, rejected rows) for each commit.

    Attributes:
        failed: ids of the rows that were rejected for a reason of `RETRIED`.
    """

    def __init__(
        self,
        dataset: Storage,
        commits: Commits,
        family: Family,
        encoder_hash: str,
        shard_bytes: float,
        shard_s: float,
        report: Callable[[int, int], None],
    ) -> None:
        import ray

        self._dataset, self._commits, self._family, self._hash = dataset, commits, family, encoder_hash
        self._shard_bytes, self._shard_s, self._report = shard_bytes, shard_s, report
        # The task asks for no CPU: on a small cluster the encoders may hold all of them.
        self._write = ray.remote(num_cpus=0, max_retries=3, retry_exceptions=True)(write_blocks)
        self._pending = _Pending()
        self._writing: list[Any] = []
        self.failed: set[str] = set()

    def run(self, bundles: Iterable[Any]) -> None:
        """Commit everything that a Ray Data iterator yields. Raises what the iterator raises.

        The iterator is released in any case: Ray Data stops a graph only when nobody holds its iterator.
        """
        arrived: queue.Queue[Any] = queue.Queue(_WAITING)
        stopped = threading.Event()
        reader = threading.Thread(target=_read, args=(iter(bundles), arrived, stopped), daemon=True)
        reader.start()
        del bundles  # an error that is kept keeps this frame
        try:
            while True:
                try:
                    kind, value = arrived.get(timeout=min(1.0, self._shard_s / 2))
                except queue.Empty:
                    kind, value = "nothing", None
                if kind == "bundle":
                    self._add(value)
                if self._due() or kind in ("end", "error"):
                    self._start_shard()
                self._commit_written(wait=kind in ("end", "error"))
                if kind == "error":
                    raise value
                if kind == "end":
                    return
        finally:
            stopped.set()
            reader.join(60)

    def _add(self, bundle: Any) -> None:
        if not self._pending.refs:
            self._pending.since = time.monotonic()
        for block in bundle.blocks:
            self._pending.refs.append(block.ref)
            self._pending.size += block.metadata.size_bytes or 0
            self._report(block.metadata.num_rows or 0, 0)

    def _due(self) -> bool:
        waiting = self._pending
        old = time.monotonic() - waiting.since >= self._shard_s
        return bool(waiting.refs) and (waiting.size >= self._shard_bytes or old)

    def _start_shard(self) -> None:
        if self._pending.refs:
            arguments = (self._dataset.reference(), self._family, self._hash, *self._pending.refs)
            self._writing.append(self._write.remote(*arguments))
            self._pending = _Pending()

    def _commit_written(self, wait: bool) -> None:
        import ray

        while self._writing:
            ready, _ = ray.wait(self._writing, num_returns=1, timeout=None if wait else 0)
            if not ready:
                return
            self._writing.remove(ready[0])
            commit = ray.get(ready[0])
            self._commits.add(commit)
            self.failed |= commit["rejected"].keys() - self._commits.done
            self._report(0, len(commit["rejected"]))


def write_blocks(dataset: tuple[Any, ...], family: Family, encoder_hash: str, *blocks: pa.Table) -> dict[str, Any]:
    """Write encoded blocks as one shard. Returns its commit, which holds the CPU seconds of each stage."""
    started = time.process_time()
    storage = Storage(*dataset)
    rows, pixels, rejected, cpu_s = [], [], {}, dict.fromkeys(STAGES, 0.0)
    stored = ["preview", *(f.name for f in tensor_fields(family.pixel_tensors))]
    for encoded in (row for block in blocks for row in block.to_pylist()):
        window = window_from_json(encoded["window"])
        key = row_id(window.window_id, window.caption)
        if encoded["reject"]:
            rejected[key] = json.loads(encoded["reject"])
            continue
        prompt = _prompt(dataset, encoder_hash, prompt_file(window.caption))
        row = window_columns(window) | {"frame_pts": window.frame_pts, "box": window.box} | prompt
        row |= {name: encoded[name] for name in stored}
        rows.append(row | {"encoder_hash": encoder_hash})
        pixels.append(encoded["pixels_sha256"])
        for stage in STAGES:
            cpu_s[stage] += encoded[f"{stage}_cpu_s"] or 0.0
    commit: dict[str, Any] = {"rejected": rejected, "rows": [], "cpu_s": cpu_s}
    if rows:
        commit["shard"] = write_shard(storage, family, rows)
        commit["rows"] = [
            {
                "row_id": row_id(r["window_id"], r["caption"]),
                "sha256": row_sha256(r, family.tensors),
                "pixels_sha256": p,
            }
            for r, p in zip(rows, pixels, strict=True)
        ]
    cpu_s["write"] = time.process_time() - started
    return commit


_PROMPTS: dict[tuple[str, str, str], dict[str, Any]] = {}


def _prompt(dataset: tuple[Any, ...], encoder_hash: str, name: str) -> dict[str, Any]:
    key = (dataset[1], encoder_hash, name)
    if key not in _PROMPTS:
        if len(_PROMPTS) >= 64:  # of at most 4 MB
            _PROMPTS.clear()
        _PROMPTS[key] = read_table(Storage(*dataset), name).to_pylist()[0]
    return _PROMPTS[key]


def _read(bundles: Iterator[Any], arrived: queue.Queue[Any], stopped: threading.Event) -> None:
    def put(item: tuple[str, Any]) -> None:
        while not stopped.is_set():
            try:
                arrived.put(item, timeout=1.0)
                return
            except queue.Full:
                continue

    try:
        for bundle in bundles:
            put(("bundle", bundle))
            if stopped.is_set():
                break
        put(("end", None))
    except BaseException as e:
        put(("error", e))
