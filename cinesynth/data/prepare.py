"""Footage to a clips dataset: the Ray Data graphs `index` and `encode`, and what the driver does around them.

    hash     every source file, so that the run's identity covers the footage
    index    sources -> probe, shots, windows, captions, split -> windows.parquet
    encode   windows of no commit -> actor pool -> shards -> commits
    finish   index.parquet, rejected.parquet, index.html, manifest.json, result.json

The same command continues wherever it was killed. The outcome depends neither on the number of workers nor on
interruptions.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.encode import (
    EMPTY_PROMPT,
    Commits,
    EncodeWindows,
    WriteShards,
    object_sha256,
    open_dataset,
    to_rows,
)
from cinesynth.data.footage import PyAVDecoder, find_sources
from cinesynth.data.shards import INDEX_SCHEMA, SCHEMA_VERSION, WINDOW_SCHEMA, read_table, write_table
from cinesynth.data.windows import Reject, Source, Window, index_source
from cinesynth.errors import DatasetError
from cinesynth.report.dataset import write_dataset_page
from cinesynth.runs import Run
from cinesynth.storage import Storage, sha256_file, sha256_json

logger = logging.getLogger(__name__)

_REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "reason", "detail", "window_id")])
_SPLITS = ("train", "val", "test")
_ENCODE_BATCH = 4  # windows that an actor is handed at once
_IDENTITY_KEY = b"cinesynth.identity"


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Prepare a clips dataset on the connected Ray cluster; returns the run's result.

    Raises IdentityError when the run's name stands for other footage, settings or encoders, and DatasetError when
    no window comes out.
    """
    from cinesynth.wan.load import encoder_hash

    started = time.monotonic()
    _quiet_ray_data()
    encoders = encoder_hash(config.model)
    sources, rejects = _hash_sources(config)
    footage = sha256_json(sorted(source.sha256 for source in sources))
    run = Run.open(config, inputs={"model": encoders, "footage": footage})
    dataset = open_dataset(config.storage, config.name)
    result = run.result()
    if result is not None and dataset.exists("manifest.json"):
        logger.info("prepare %s: already complete", config.name)
        return result
    identity = sha256_json({"identity": config.identity(), "inputs": run.inputs})
    windows, rejects = _indexed(config, dataset, identity, sources, rejects)
    if not windows:
        raise DatasetError(f"no window came out of {len(sources)} files: {_explain(rejects)}")
    commits = Commits(dataset)
    _encode(config, encoders, windows, commits)
    rejects += commits.rejects()
    manifest = _finish(config, dataset, encoders, windows, rejects, commits)
    figures = {"windows": manifest["windows"], "rejected": len(rejects), "sources": len(sources)}
    for split in _SPLITS:
        figures |= {f"{split}_{key}": value for key, value in manifest["splits"][split].items()}
    figures["seconds"] = round(time.monotonic() - started, 1)
    outputs = {
        "dataset": dataset.uri,
        "manifest_sha256": manifest["content_sha256"],
        "page": f"{dataset.uri}/index.html",
    }
    return run.finish(outputs, figures)


def index_footage(config: PrepareConfig) -> tuple[list[Window], list[Reject]]:
    """Windows and rejects of all footage, in the order of files and time, without encoding or storing anything."""
    _quiet_ray_data()
    sources, rejects = _hash_sources(config)
    windows, more = _index(config, sources)
    return windows, rejects + more


# --- hash and index ------------------------------------------------------------------------------------------


def _hash_sources(config: PrepareConfig) -> tuple[list[Source], list[Reject]]:
    """Readable files with distinct content, in order of path; a copy of an earlier file is a reject."""
    import ray

    def hashed(row: dict[str, str]) -> dict[str, str]:
        try:
            return {"path": row["path"], "sha256": sha256_file(row["path"]), "error": ""}
        except OSError as e:
            return {"path": row["path"], "sha256": "", "error": str(e)}

    found = find_sources(config.footage)
    if not found:
        raise DatasetError(f"no video file in {', '.join(source.path for source in config.footage)}")
    dataset = ray.data.from_items([{"path": str(path)} for path, _ in found], override_num_blocks=_blocks(len(found)))
    rows = {row["path"]: row for row in dataset.map(hashed).iter_rows()}
    first_with: dict[str, str] = {}
    sources, rejects = [], []
    for path, index in found:
        row = rows[str(path)]
        if row["error"]:
            rejects.append(Reject(str(path), "unreadable", row["error"]))
        elif row["sha256"] in first_with:
            rejects.append(Reject(str(path), "duplicate", f"same content as {first_with[row['sha256']]}"))
        else:
            first_with[row["sha256"]] = str(path)
            of = config.footage[index]
            sources.append(Source(str(path), row["sha256"], of.domain, of.caption))
    return sources, rejects


def _index(config: PrepareConfig, sources: list[Source]) -> tuple[list[Window], list[Reject]]:
    import ray

    def indexed(row: dict[str, str]) -> Iterator[dict[str, str]]:
        windows, rejects = index_source(Source(**json.loads(row["source"])), config, PyAVDecoder())
        yield from ({"window": json.dumps(asdict(window)), "reject": ""} for window in windows)
        yield from ({"window": "", "reject": json.dumps(asdict(reject))} for reject in rejects)

    if not sources:
        return [], []
    items = [{"source": json.dumps(asdict(source))} for source in sources]
    dataset = ray.data.from_items(items, override_num_blocks=_blocks(len(items)))
    rows = list(dataset.flat_map(indexed, num_cpus=1).iter_rows())
    windows = [_window(json.loads(row["window"])) for row in rows if row["window"]]
    rejects = [Reject(**json.loads(row["reject"])) for row in rows if row["reject"]]
    order = {source.path: i for i, source in enumerate(sources)}
    windows.sort(key=lambda w: (order[w.source_uri], w.frame_pts[0], w.window_id))
    rejects.sort(key=lambda r: (order[r.source], r.detail))
    return windows, rejects


def _indexed(
    config: PrepareConfig, dataset: Storage, identity: str, sources: list[Source], rejects: list[Reject]
) -> tuple[list[Window], list[Reject]]:
    """The index as stored, or made and stored now."""
    if dataset.exists("windows.parquet"):
        table = read_table(dataset, "windows.parquet")
        if (table.schema.metadata or {}).get(_IDENTITY_KEY) != identity.encode():
            raise DatasetError(f"{dataset.uri} holds a dataset that another run made; use another name or remove it")
        stored = read_table(dataset, "indexed-rejects.parquet").to_pylist()
        return [_window(row) for row in table.to_pylist()], [Reject(**row) for row in stored]
    started = time.monotonic()
    windows, more = _index(config, sources)
    rejects = rejects + more
    write_table(dataset, "indexed-rejects.parquet", _reject_table(rejects))
    table = pa.Table.from_pylist([asdict(w) for w in windows], schema=WINDOW_SCHEMA)
    write_table(dataset, "windows.parquet", table.replace_schema_metadata({_IDENTITY_KEY: identity.encode()}))
    seconds = time.monotonic() - started
    logger.info("indexed %d files: %d windows, %d rejects in %.1f s", len(sources), len(windows), len(rejects), seconds)
    return windows, rejects


# --- encode and finish ---------------------------------------------------------------------------------------


def _encode(config: PrepareConfig, encoders: str, windows: list[Window], commits: Commits) -> None:
    """Encode and commit the windows that no commit settles."""
    import ray

    pending = [window for window in windows if window.window_id not in commits.done]
    if not pending:
        return
    total, done, started = len(windows), len(windows) - len(pending), time.monotonic()
    logger.info("encoding %d windows (%d of %d are committed)", len(pending), done, total)
    blocks = -(-len(pending) // _ENCODE_BATCH)
    encoded = ray.data.from_items(to_rows(pending), override_num_blocks=blocks).map_batches(
        EncodeWindows,
        fn_constructor_kwargs={
            "model": config.model,
            "device": "cuda" if config.encode_gpus > 0 else "cpu",
            "storage": config.storage,
            "name": config.name,
        },
        batch_size=_ENCODE_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.encode_workers),
        num_cpus=config.encode_cpus,
        num_gpus=config.encode_gpus,
    )
    # No CPU is asked for: on a small cluster the encoders may hold them all.
    committed = encoded.map_batches(
        WriteShards(config.storage, config.name, encoders),
        batch_size=config.shard_windows,
        batch_format="pyarrow",
        num_cpus=0,
    )
    before = done
    for row in committed.iter_rows():
        done += commits.add(json.loads(row["commit"]))
        rate = (done - before) / (time.monotonic() - started)
        left = f"{(total - done) / rate:.0f} s left" if rate else ""
        logger.info("encoded %d/%d windows, %.2f windows/s, %s", done, total, rate, left)


def _finish(
    config: PrepareConfig,
    dataset: Storage,
    encoders: str,
    windows: list[Window],
    rejects: list[Reject],
    commits: Commits,
) -> dict[str, Any]:
    """Write everything that describes the committed shards, the manifest last; returns the manifest."""
    places: dict[str, dict[str, Any]] = {}
    shards = []
    for commit in commits:
        if "shard" in commit:
            shards.append(commit["shard"])
            for row, window in enumerate(commit["windows"]):
                places[window["window_id"]] = {"shard": commit["shard"]["file"], "row": row, "sha256": window["sha256"]}
    kept = sorted((w for w in windows if w.window_id in places), key=lambda w: w.window_id)
    if not kept:
        raise DatasetError(f"none of {len(windows)} windows could be encoded: {_explain(rejects)}")
    lost = len(windows) - len(kept) - sum(bool(reject.window_id) for reject in rejects)
    assert lost == 0, f"{lost} windows are neither encoded nor rejected"
    _remove_uncommitted(dataset, {shard["file"] for shard in shards})
    rows = [asdict(w) | {key: places[w.window_id][key] for key in ("shard", "row")} for w in kept]
    write_table(dataset, "index.parquet", pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    write_table(dataset, "rejected.parquet", _reject_table(rejects))
    empty_prompt = {"file": EMPTY_PROMPT, "sha256": object_sha256(dataset, EMPTY_PROMPT)}
    content = [[w.window_id, w.split, w.group, w.domain, w.caption, places[w.window_id]["sha256"]] for w in kept]
    manifest = {
        "schema": SCHEMA_VERSION,
        "kind": "clips",
        "name": config.name,
        "model": config.model,
        "encoder_hash": encoders,
        "window": config.window.model_dump(mode="json"),
        "windows": len(kept),
        "splits": {split: _counts([w for w in kept if w.split == split]) for split in _SPLITS},
        "domains": {name: _counts([w for w in kept if w.domain == name]) for name in sorted({w.domain for w in kept})},
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "index": {"file": "index.parquet", "sha256": object_sha256(dataset, "index.parquet")},
        "empty_prompt": empty_prompt,
        "shards": shards,
        "content_sha256": sha256_json([SCHEMA_VERSION, encoders, empty_prompt["sha256"], content]),
    }
    write_dataset_page(dataset, manifest, kept, rejects)
    dataset.write_json("manifest.json", manifest)
    return manifest


def _remove_uncommitted(dataset: Storage, committed: set[str]) -> None:
    """Shards that were written but not committed before a kill."""
    for name in dataset.list("shards"):
        if name not in committed:
            dataset.delete(name)


def _counts(windows: list[Window]) -> dict[str, int]:
    return {"windows": len(windows), "groups": len({w.group for w in windows})}


def _reject_table(rejects: list[Reject]) -> pa.Table:
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=_REJECT_SCHEMA)


def _explain(rejects: list[Reject]) -> str:
    counts = Counter(reject.reason for reject in rejects)
    first = f"; first: {rejects[0].source}: {rejects[0].detail}" if rejects else ""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) + first


def _window(row: dict[str, Any]) -> Window:
    return Window(**{**row, "frame_pts": tuple(row["frame_pts"])})


def _blocks(items: int) -> int:
    """One file a block while files are few; a block of a large collection holds several."""
    return min(items, 1000)


def _quiet_ray_data() -> None:
    """Our progress lines replace Ray Data's bars and plans, which hide them in a job's log."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # its note that there are no bars
