"""Footage to a clips dataset: the Ray Data graphs, and what the driver does around them.

    files      sources -> content hashes and captions                      (what did not change is not read again)
    scans      files -> timestamps, cuts, scores: one pass over each       (by content, never twice)
    annotate   windows -> text overlay, aesthetic score, captions          (where models are configured)
    plan       filters, near-duplicates, groups, splits -> plan.parquet    (what was assigned stays)
    encode     windows of no commit -> decode, VAE, CLIP -> shards -> commits
    assemble   index, page, manifest, result

The same command continues wherever it was killed, and takes in added footage. The outcome depends neither on the
number of workers nor on interruptions.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from cinesynth.config import PrepareConfig
from cinesynth.data.annotate import Annotate, annotation_key, unavailable
from cinesynth.data.assemble import (
    SOURCE_SCHEMA,
    SPLITS,
    assemble,
    empty_prompt_entry,
    explain,
    read_plan,
    withdrawn,
    write_plan,
)
from cinesynth.data.captions import Captions, ShotCaption, read_captions, with_trigger
from cinesynth.data.commits import Commits, ShardWriter, row_id
from cinesynth.data.config import DecodeSettings, StageResources
from cinesynth.data.duplicates import near_duplicates
from cinesynth.data.encode import (
    DecodeWindows,
    EncodeCaptions,
    EncodeImages,
    EncodeLatents,
    caption_sha256,
    to_blocks,
    watched,
)
from cinesynth.data.plan import Assigned, assign, filter_windows
from cinesynth.data.progress import Progress
from cinesynth.data.scan import SCAN_SCHEMA, SCAN_VERSION, Scan, from_row, timed_scan, to_row
from cinesynth.data.shards import read_table, write_table
from cinesynth.data.sources import Reject, Source, content_sha256, find_sources, fingerprint, local_copy, source_key
from cinesynth.data.windows import Window, cut_windows, shot_samples
from cinesynth.errors import DatasetError, MediaError
from cinesynth.runs import Run
from cinesynth.storage import Storage, sha256_json

log = logging.getLogger(__name__)

_STORE_S = 20.0  # results of scans and models are stored this often
_CACHE_GB = 1e9


@dataclass(frozen=True)
class File:
    """A source whose content and captions are known."""

    source: Source
    sha256: str
    captions: Captions


def open_dataset(storage: str, name: str) -> Storage:
    """Where the dataset `name` lies below a storage location."""
    return Storage.open(storage).child("datasets", name)


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Prepare a clips dataset on the connected Ray cluster; returns the run's result.

    Raises IdentityError when the run's name stands for other settings or encoders, and DatasetError when no window
    comes out.
    """
    from cinesynth.wan.load import encoder_hash

    started = time.monotonic()
    _quiet_ray_data()
    encoders = encoder_hash(config.model)
    run = Run.open(config, inputs={"model": encoders})
    dataset = open_dataset(config.storage, config.name)
    identity = sha256_json({"identity": config.identity(), "inputs": run.inputs})
    planned = read_plan(dataset, identity)
    files, rejects = read_files(config, dataset)
    footage = sha256_json([sorted(source_key(f.source, f.sha256) + repr(f) for f in files), sorted(withdrawn(dataset))])
    result = run.result()
    if result is not None and result["outputs"]["footage_sha256"] == footage and dataset.exists("manifest.json"):
        log.info("prepare %s: already complete", config.name)
        return result
    windows, more = _planned(config, dataset, identity, planned, files)
    rejects += more
    if not windows:
        raise DatasetError(f"no window came out of {len(files)} files: {explain(rejects)}")
    commits = Commits(dataset)
    prompts = _encode_captions(config, dataset, {w.caption for w in windows})
    rejects += _encode(config, dataset, encoders, windows, commits, prompts)
    empty = prompts[caption_sha256("")]
    facts = {
        "name": config.name,
        "model": config.model,
        "encoder_hash": encoders,
        "window": config.window.model_dump(mode="json"),
        "unmeasured": unavailable(config),
        "empty_prompt": empty_prompt_entry(dataset, empty, caption_sha256("")),
        "found_s": round(sum(row["seconds"] for row in read_table(dataset, "sources.parquet").to_pylist()), 2),
    }
    _remove_uncommitted(dataset, commits)
    manifest = assemble(dataset, facts, rejects, commits)
    figures = {"windows": manifest["windows"], "rejected": len(rejects), "sources": len(files)}
    for split in SPLITS:
        figures |= {f"{split}_{key}": value for key, value in manifest["splits"][split].items()}
    figures["seconds"] = round(time.monotonic() - started, 1)
    outputs = {
        "dataset": dataset.uri,
        "manifest_sha256": manifest["content_sha256"],
        "footage_sha256": footage,
        "page": f"{dataset.uri}/index.html",
    }
    return run.finish(outputs, figures)


def index_footage(config: PrepareConfig, dataset: Storage) -> tuple[list[Window], list[Reject]]:
    """Windows and rejects of all footage as `prepare` would plan them, without encoding; `dataset` takes the scans."""
    _quiet_ray_data()
    files, rejects = read_files(config, dataset)
    windows, more = _planned(config, dataset, "", [], files)
    return windows, rejects + more


# --- files ---------------------------------------------------------------------------------------------------


def read_files(config: PrepareConfig, dataset: Storage) -> tuple[list[File], list[Reject]]:
    """Readable sources with distinct content, in order of footage; a second one with the same content is a reject."""
    import ray

    known = _known_hashes(dataset)
    shared = ray.put(known)

    def read(row: dict[str, str]) -> dict[str, str]:
        location = row["location"]
        try:
            size, changed = fingerprint(location)
            before = ray.get(shared).get(location)
            sha256 = before[2] if before is not None and before[:2] == (size, changed) else content_sha256(location)
            captions = json.dumps(asdict(read_captions(location)))
        except MediaError as e:
            return row | {"error": str(e), "found": ""}
        return row | {"error": "", "found": json.dumps([size, changed, sha256, captions])}

    sources, rejects = find_sources(config.footage)
    if not sources:
        where = ", ".join(source.path for source in config.footage)
        raise DatasetError(f"no video file in {where}" + (f": {explain(rejects)}" if rejects else ""))
    locations = sorted({source.location for source in sources})
    items = [{"location": name} for name in locations]
    data = ray.data.from_items(items, override_num_blocks=_blocks(len(items)))
    found = {row["location"]: row for row in data.map(read).iter_rows()}
    read_ones = {name: json.loads(row["found"]) for name, row in sorted(found.items()) if row["found"]}
    hashes = {name: (size, changed, sha256) for name, (size, changed, sha256, _) in read_ones.items()}
    if hashes != known:
        rows = [dict(zip(_FILE_COLUMNS, (name, *values), strict=True)) for name, values in hashes.items()]
        write_table(dataset, "files.parquet", pa.Table.from_pylist(rows))
    gone = withdrawn(dataset)
    first_with: dict[str, str] = {}
    files = []
    for source in sources:
        row = found[source.location]
        if row["error"]:
            rejects.append(Reject(source.uri, "unreadable", row["error"]))
            continue
        _, _, sha256, captions = read_ones[source.location]
        key = source_key(source, sha256)
        if sha256 in gone:
            rejects.append(Reject(source.uri, "withdrawn", f"on {gone[sha256]['at']}"))
        elif key in first_with:
            rejects.append(Reject(source.uri, "duplicate", f"same content as {first_with[key]}"))
        else:
            first_with[key] = source.uri
            files.append(File(source, sha256, _captions(json.loads(captions))))
    return files, rejects


_FILE_COLUMNS = ("location", "size", "changed", "sha256")


def _known_hashes(dataset: Storage) -> dict[str, tuple[int, int, str]]:
    if not dataset.exists("files.parquet"):
        return {}
    rows = read_table(dataset, "files.parquet").to_pylist()
    return {row["location"]: (row["size"], row["changed"], row["sha256"]) for row in rows}


def _captions(row: dict[str, Any]) -> Captions:
    return Captions(row["whole"], tuple(ShotCaption(**shot) for shot in row["shots"]), row["group"])


# --- scans ---------------------------------------------------------------------------------------------------


def _scans(config: PrepareConfig, dataset: Storage, files: list[File]) -> tuple[dict[str, Scan], list[Reject]]:
    """Scan of each content, made where it is not stored; and what could not be scanned."""
    import ray

    settings = config.shots.model_dump(mode="json")
    wanted = {sha256_json([SCAN_VERSION, f.sha256, settings]): f for f in reversed(files)}
    stored = _stored(dataset, "scans", "key")
    missing = [
        {"key": key, "file": json.dumps([f.sha256, f.source.location, f.source.uri])}
        for key, f in wanted.items()
        if key not in stored
    ]
    shots, decode = config.shots, config.decode

    def scanned(row: dict[str, str]) -> dict[str, Any]:
        sha256, location, uri = json.loads(row["file"])
        try:
            path = local_copy(location, sha256, decode.cache_gb * _CACHE_GB)
            found, cpu_s = watched(decode.limit_s).call(uri, timed_scan, path, shots)
        except MediaError as e:
            return to_row(row["key"], sha256, uri, str(e))
        return to_row(row["key"], sha256, uri, found, cpu_s)

    errors: dict[str, str] = {}
    if missing:
        log.info("scanning %d files (%d of %d are known)", len(missing), len(wanted) - len(missing), len(wanted))
        progress = Progress("scan", config.name, len(missing), "files")
        data = ray.data.from_items(missing, override_num_blocks=_blocks(len(missing)))
        rows = data.map_batches(
            lambda batch: pa.Table.from_pylist([scanned(row) for row in batch.to_pylist()], schema=SCAN_SCHEMA),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=config.resources.decode,
        )
        for table in _in_parts(rows, progress):
            good = table.filter(pa.compute.equal(table["error"], ""))
            if len(good):
                _store(dataset, "scans", good)
            for row in table.to_pylist():
                stored[row["key"]] = row
                if row["error"]:
                    errors[row["key"]] = row["error"]
    scans = {f.sha256: scan for key, f in wanted.items() if (scan := from_row(stored[key])) is not None}
    return scans, [Reject(wanted[key].source.uri, "unreadable", error) for key, error in sorted(errors.items())]


def _in_parts(rows: Any, progress: Progress) -> Iterator[pa.Table]:
    """A graph's results (with a column `error`) as they come, put together for as long as `_STORE_S`."""
    waiting: list[pa.Table] = []
    since = time.monotonic()
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        progress.add(len(batch), errors=sum(bool(error) for error in batch["error"].to_pylist()))
        waiting.append(batch)
        if time.monotonic() - since > _STORE_S:
            yield pa.concat_tables(waiting)
            waiting, since = [], time.monotonic()
    if waiting:
        yield pa.concat_tables(waiting)


def _stored(dataset: Storage, folder: str, key: str) -> dict[str, dict[str, Any]]:
    """All rows of the parts in a folder."""
    parts = [read_table(dataset, name) for name in dataset.list(folder)]
    return {row[key]: row for part in parts for row in part.to_pylist()}


def _store(dataset: Storage, folder: str, table: pa.Table) -> None:
    write_table(dataset, f"{folder}/{len(dataset.list(folder)):06d}.parquet", table)


# --- plan ----------------------------------------------------------------------------------------------------


def _planned(
    config: PrepareConfig, dataset: Storage, identity: str, before: list[Window], files: list[File]
) -> tuple[list[Window], list[Reject]]:
    """The windows of the dataset with group and split, stored as its plan: those it had, and those that are new."""
    scans, rejects = _scans(config, dataset, files)
    windows: dict[str, Window] = {}
    for file in files:
        if file.sha256 in scans:
            found, left_out = cut_windows(file.source, file.sha256, scans[file.sha256], file.captions, config)
            rejects += left_out
            for window in found:
                windows.setdefault(window.window_id, window)
    _write_sources(dataset, files, scans)
    annotated, more = _annotated(config, dataset, list(windows.values()))
    rejects += more
    kept, more = filter_windows(annotated, config.filters)
    rejects += more
    kept = [replace(w, caption=with_trigger(w.caption or config.caption, config.trigger)) for w in kept]
    assigned, more = assign(
        kept, _alike(config, scans, kept), config, {w.shot_id: Assigned(w.group, w.split) for w in before}
    )
    rejects += more
    known = {w.window_id for w in assigned}
    # What the footage no longer holds stays in the dataset: taking it out is a decision, see `withdraw`.
    gone = withdrawn(dataset)
    planned = [*(w for w in before if w.window_id not in known and w.source_sha256 not in gone), *assigned]
    write_plan(dataset, identity, planned)
    log.info("planned %d windows of %d files; %d rejects", len(planned), len(files), len(rejects))
    return planned, rejects


def _alike(config: PrepareConfig, scans: dict[str, Scan], windows: list[Window]) -> list[tuple[str, str]]:
    """Pairs of shot ids that show nearly the same."""
    if config.duplicates.action == "keep":
        return []
    wanted = {w.shot_id: w.source_sha256 for w in windows}
    ids, samples = [], []
    for sha256 in dict.fromkeys(wanted.values()):
        for shot in scans[sha256].shots():
            if (shot_id := f"{sha256[:16]}-{shot.start_pts}") in wanted:
                ids.append(shot_id)
                samples.append(shot_samples(scans[sha256], shot))
    return [(ids[a], ids[b]) for a, b in near_duplicates(samples, config.duplicates)]


def _annotated(config: PrepareConfig, dataset: Storage, windows: list[Window]) -> tuple[list[Window], list[Reject]]:
    """Windows with the scores and captions that models give, made where they are not stored."""
    import ray

    key = annotation_key(config)
    if not key:
        return windows, []
    folder = f"annotations/{key}"
    stored = {name: (row["found"], row["error"]) for name, row in _stored(dataset, folder, "window_id").items()}
    missing = [w for w in windows if w.window_id not in stored]
    if missing:
        resources = config.resources.models
        progress = Progress("annotate", config.name, len(missing), "windows")
        rows = ray.data.from_arrow(to_blocks(missing)).map_batches(
            Annotate,
            fn_constructor_args=(
                config.model_dump(mode="json", exclude={"name", "storage", "ray", "model"}),
                config.decode,
                _device(resources),
            ),
            **_actors(resources),
        )
        for table in _in_parts(rows, progress):
            _store(dataset, folder, table)
            stored |= {row["window_id"]: (row["found"], row["error"]) for row in table.to_pylist()}
    kept, rejects = [], []
    for window in windows:
        found, error = stored[window.window_id]
        if error:
            rejects.append(Reject(window.source_uri, "undecodable", error, window.window_id))
        else:
            found = json.loads(found)
            caption = window.caption or found.get("caption", "")
            kept.append(replace(window, scores=window.scores | found["scores"], caption=caption))
    return kept, rejects


def _write_sources(dataset: Storage, files: list[File], scans: dict[str, Scan]) -> None:
    rows = []
    for file in files:
        if (scan := scans.get(file.sha256)) is not None:
            base, first, shots = scan.info.time_base, scan.pts[0], scan.shots()
            info = asdict(scan.info) | {"pixel_aspect": str(scan.info.pixel_aspect), "time_base": str(base)}
            seconds = float((shots[-1].end_pts - first) * base)
            rows.append(
                {
                    "uri": file.source.uri,
                    "sha256": file.sha256,
                    "domain": file.source.domain,
                    "seconds": seconds,
                    "frames": len(scan.pts),
                    "info": json.dumps(info),
                    "shots": [[float((p - first) * base) for p in (s.start_pts, s.end_pts)] for s in shots],
                    "damaged_s": seconds * sum(scan.damaged) / len(scan.pts),
                }
            )
    write_table(dataset, "sources.parquet", pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA))


# --- encode --------------------------------------------------------------------------------------------------


def _encode_captions(config: PrepareConfig, dataset: Storage, captions: set[str]) -> dict[str, str]:
    """Caption sha256 to the object that holds its embedding, for all captions and the empty one."""
    import ray

    parts = {
        sha256: name
        for name in dataset.list("prompts")
        for sha256 in read_table(dataset, name)["caption_sha256"].to_pylist()
    }
    missing = sorted(caption for caption in {*captions, ""} if caption_sha256(caption) not in parts)
    if missing:
        resources = config.resources.text
        rows = ray.data.from_items(
            [{"caption": c} for c in missing], override_num_blocks=min(len(missing), resources.workers)
        )
        encoded = rows.map_batches(
            EncodeCaptions,
            fn_constructor_args=(config.model, _device(resources), dataset.reference()),
            **_actors(resources) | {"batch_size": 256},
        )
        parts |= {row["caption_sha256"]: row["part"] for row in encoded.iter_rows()}
    return parts


def _encode(
    config: PrepareConfig,
    dataset: Storage,
    encoders: str,
    windows: list[Window],
    commits: Commits,
    prompts: dict[str, str],
) -> list[Reject]:
    """Encode and commit the windows that no commit settles; returns the rejects of the planned ones.

    A node or worker that dies costs what it held: that is encoded again, for as long as anything gets done.
    """
    import ray

    rows = {row_id(w.window_id, w.caption): w for w in windows}
    progress = Progress("encode", config.name, len(rows), "windows", done=len(rows.keys() & commits.done))
    tried: set[str] = set()
    while pending := {key: w for key, w in rows.items() if key not in commits.done | tried}:
        before = len(commits.done)
        writer = ShardWriter(
            dataset, commits, encoders, prompts, config.shard_mb * 1e6, config.shard_s, lambda n, e: progress.add(n, e)
        )
        try:
            writer.run(encode_graph(config, dataset, pending.values()).iter_internal_ref_bundles())
        except (ray.exceptions.RayError, OSError) as e:
            if len(commits.done) == before or isinstance(e, OSError):
                raise
            log.warning("encoding was interrupted, going on with what is left: %s", str(e).splitlines()[0])
            continue
        tried |= pending.keys() - commits.done
    wanted = {w.window_id for w in windows}
    return [reject for reject in commits.rejects() if reject.window_id in wanted]


def encode_graph(config: PrepareConfig, dataset: Storage, windows: Iterable[Window]) -> Any:
    """The Ray Data graph from windows to encoded rows."""
    import ray

    vae, clip = config.resources.vae, config.resources.clip
    return (
        ray.data.from_arrow(to_blocks(windows))
        .map_batches(
            DecodeWindows(DecodeSettings.model_validate(config.decode), dataset.reference()),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=config.resources.decode,
        )
        .map_batches(EncodeLatents, fn_constructor_args=(config.model, _device(vae), config.vae_dtype), **_actors(vae))
        .map_batches(EncodeImages, fn_constructor_args=(config.model, _device(clip)), **_actors(clip))
    )


def _actors(resources: StageResources) -> dict[str, Any]:
    """Arguments of `map_batches` for a stage of actors that takes whole blocks."""
    import ray

    return {
        "compute": ray.data.ActorPoolStrategy(size=resources.workers),
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "batch_format": "pyarrow",
        "batch_size": None,
    }


def _device(resources: StageResources) -> str:
    return "cuda" if resources.gpus > 0 else "cpu"


def _remove_uncommitted(dataset: Storage, commits: Commits) -> None:
    """Shards that were written but not committed before a kill."""
    committed = {commit["shard"]["file"] for commit in commits if "shard" in commit}
    for name in dataset.list("shards"):
        if name not in committed:
            dataset.delete(name)


def _blocks(items: int) -> int:
    """One file a block while files are few; a block of a large collection holds several."""
    return max(1, min(items, 1000))


def _quiet_ray_data() -> None:
    """Our progress lines replace Ray Data's bars and plans, which hide them in a job's log."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # its note that there are no bars
