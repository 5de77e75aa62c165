"""Shards and their commits: how encoded windows become part of a dataset, once each, whatever is killed.

The driver holds references to encoded blocks until they make a shard; a task writes it under a name that was never
used; the driver then commits it as a small numbered object. What is in no commit does not exist: it is encoded again.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cinesynth.data.encode import ENCODED, STAGES, caption_sha256, window_from_json
from cinesynth.data.shards import read_table, row_sha256, window_columns, write_shard
from cinesynth.data.sources import Reject
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger(__name__)

_STORED = [name for name in ENCODED.names if name not in ("window", "reject") and not name.endswith("_cpu_s")]
FINAL_REASONS = ("undecodable", "not_finite")
"""Reasons that another attempt does not change."""


def row_id(window_id: str, caption: str) -> str:
    """Identity of an encoded row: a window whose caption changes is encoded again."""
    return sha256_json([window_id, caption])


class Commits:
    """The commits of a dataset, in order: which shards count, and which rows need no encoding."""

    def __init__(self, dataset: Storage) -> None:
        self._dataset = dataset
        names = dataset.list("commits")
        with ThreadPoolExecutor(16) as pool:
            self._entries: list[dict[str, Any]] = list(pool.map(dataset.read_json, names))
        self._next = 1 + max((int(name.rsplit("/", 1)[-1].partition(".")[0]) for name in names), default=-1)
        self.done = {row for entry in self._entries for row in _settled(entry)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._entries)

    def add(self, commit: dict[str, Any]) -> int:
        """Write one commit; returns how many rows it settles. A shard with a row that is committed is left out."""
        new = _settled(commit)
        if new & self.done:
            return 0
        self._dataset.write_json(f"commits/{self._next:06d}.json", commit)
        self._next += 1
        self._entries.append(commit)
        self.done |= new
        return len(new)

    def places(self) -> dict[str, dict[str, Any]]:
        """Row id to its place (`shard`, `row`) and the `sha256` of its tensors."""
        return {
            entry["row_id"]: {"shard": commit["shard"]["file"], "row": number, "sha256": entry["sha256"]}
            for commit in self._entries
            for number, entry in enumerate(commit["rows"])
        }

    def rejects(self) -> list[Reject]:
        """Rows that were rejected and not encoded since, by window_id."""
        encoded = {row["row_id"] for commit in self._entries for row in commit["rows"]}
        latest = {key: Reject(**reject) for commit in self._entries for key, reject in commit["rejected"].items()}
        found = [reject for key, reject in latest.items() if key not in encoded]
        return sorted(found, key=lambda reject: reject.window_id)


def _settled(commit: dict[str, Any]) -> set[str]:
    encoded = {row["row_id"] for row in commit["rows"]}
    return encoded | {key for key, reject in commit["rejected"].items() if reject["reason"] in FINAL_REASONS}


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
        dataset: where.
        commits: of the dataset.
        encoder_hash: recorded in every row.
        prompts: caption sha256 to the object that holds its embedding.
        shard_bytes, shard_s: a shard is written when it has so many bytes, or its first block has waited so long.
        report: called with (rows settled, rows rejected) of each commit.
    """

    def __init__(
        self,
        dataset: Storage,
        commits: Commits,
        encoder_hash: str,
        prompts: dict[str, str],
        shard_bytes: float,
        shard_s: float,
        report: Callable[[int, int], None],
    ) -> None:
        import ray

        self._dataset, self._commits, self._hash = dataset, commits, encoder_hash
        self._prompts = ray.put(prompts)
        self._shard_bytes, self._shard_s, self._report = shard_bytes, shard_s, report
        # No CPU is asked for: on a small cluster the encoders may hold them all.
        self._write = ray.remote(num_cpus=0, max_retries=3)(write_blocks)
        self._pending = _Pending()
        self._writing: list[Any] = []

    def run(self, bundles: Iterable[Any]) -> None:
        """Take all bundles of a Ray Data iterator, and commit all that they hold; raises what the iterator raises."""
        arrived: queue.Queue[Any] = queue.Queue()
        reader = threading.Thread(target=_read, args=(bundles, arrived), daemon=True)
        reader.start()
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
            reader.join(5)

    def _add(self, bundle: Any) -> None:
        if not self._pending.refs:
            self._pending.since = time.monotonic()
        for block in bundle.blocks:
            self._pending.refs.append(block.ref)
            self._pending.size += block.metadata.size_bytes or 0

    def _due(self) -> bool:
        waiting = self._pending
        old = time.monotonic() - waiting.since >= self._shard_s
        return bool(waiting.refs) and (waiting.size >= self._shard_bytes or old)

    def _start_shard(self) -> None:
        if self._pending.refs:
            self._writing.append(
                self._write.remote(self._dataset.reference(), self._hash, self._prompts, *self._pending.refs)
            )
            self._pending = _Pending()

    def _commit_written(self, wait: bool) -> None:
        import ray

        while self._writing:
            ready, _ = ray.wait(self._writing, num_returns=1, timeout=None if wait else 0)
            if not ready:
                return
            self._writing.remove(ready[0])
            commit = ray.get(ready[0])
            self._report(self._commits.add(commit), len(commit["rejected"]))


def write_blocks(
    dataset: tuple[Any, ...], encoder_hash: str, prompts: dict[str, str], *blocks: pa.Table
) -> dict[str, Any]:
    """Write encoded blocks as one shard; returns its commit."""
    storage = Storage(*dataset)
    rows, rejected, cpu_s = [], {}, dict.fromkeys(STAGES, 0.0)
    for encoded in (row for block in blocks for row in block.to_pylist()):
        window = window_from_json(encoded["window"])
        key = row_id(window.window_id, window.caption)
        if encoded["reject"]:
            rejected[key] = json.loads(encoded["reject"])
            continue
        prompt = _prompt(dataset, prompts[caption_sha256(window.caption)], caption_sha256(window.caption))
        row = window_columns(window) | {"frame_pts": window.frame_pts, "box": window.box} | prompt
        row |= {name: encoded[name] for name in _STORED}
        rows.append(row | {"encoder_hash": encoder_hash})
        for stage in STAGES:
            cpu_s[stage] += encoded[f"{stage}_cpu_s"] or 0.0
    commit: dict[str, Any] = {"rejected": rejected, "rows": [], "cpu_s": cpu_s}
    if rows:
        commit["shard"] = write_shard(storage, rows)
        commit["rows"] = [{"row_id": row_id(r["window_id"], r["caption"]), "sha256": row_sha256(r)} for r in rows]
    return commit


def _prompt(dataset: tuple[Any, ...], part: str, sha256: str) -> dict[str, Any]:
    return _prompts_of(part, lambda: read_table(Storage(*dataset), part))[sha256]


_PARTS: dict[str, dict[str, Any]] = {}


def _prompts_of(part: str, read: Callable[[], pa.Table]) -> dict[str, Any]:
    if part not in _PARTS:
        if len(_PARTS) > 64:
            _PARTS.clear()
        _PARTS[part] = {
            row["caption_sha256"]: {name: row[name] for name in ("prompt_embeds", "prompt_embeds_shape")}
            for row in read().to_pylist()
        }
    return _PARTS[part]


def _read(bundles: Iterable[Any], arrived: queue.Queue[Any]) -> None:
    try:
        for bundle in bundles:
            arrived.put(("bundle", bundle))
        arrived.put(("end", None))
    except BaseException as e:
        arrived.put(("error", e))
