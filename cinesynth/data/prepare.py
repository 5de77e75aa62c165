"""Footage to a clips dataset: the Ray Data graphs, and what the driver does around them.

    files      sources -> content hashes and captions                      (what did not change is not read again)
    scans      files -> timestamps, cuts, scores: one pass over each       (by content, never twice)
    annotate   windows -> text overlay, aesthetic score, captions          (where models are configured)
    plan       filters, near-duplicates, groups, splits -> plan.parquet    (what was assigned stays)
    encode     windows of no commit -> decode, VAE, CLIP -> shards -> commits
    assemble   index, page, manifest, result

The same command continues where it was killed, and takes in added footage. Neither the number of workers nor an
interruption changes the outcome.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from cinesynth.config import PrepareConfig
from cinesynth.data.config import DecodeSettings, PrepareResources, PrepareSettings, StageResources, fitted
from cinesynth.data.dataset import SPLITS, ClipsDataset, pixels_file
from cinesynth.data.encode.annotate import annotate_windows, check_models, unavailable
from cinesynth.data.encode.assemble import assemble, empty_prompt_entry
from cinesynth.data.encode.commits import RETRIED, Commits, ShardWriter
from cinesynth.data.encode.encode import DecodeWindows, EncodeCaptions, EncodeImages, EncodeLatents
from cinesynth.data.footage.files import File, read_files
from cinesynth.data.footage.inputs import check_footage
from cinesynth.data.footage.sources import source_key
from cinesynth.data.plan.assign import filter_windows
from cinesynth.data.plan.planning import cut_files, settle_windows, write_sources
from cinesynth.data.progress import Progress, show_plan
from cinesynth.data.records import (
    Reject,
    Window,
    explain,
    left_out,
    prompt_file,
    read_plan,
    read_rejects,
    row_id,
    withdrawn,
    write_plan,
)
from cinesynth.data.scan.decoders import make_decoder
from cinesynth.data.scan.shots import make_cut_detector
from cinesynth.data.scan.stored_scans import scan_files
from cinesynth.data.stages import actor_stage, block_order, device_of, to_blocks
from cinesynth.errors import ConfigError, DatasetError, ModelError, StorageError
from cinesynth.lease import Lease, held
from cinesynth.report.dataset import write_dataset_page
from cinesynth.runs import Run, records_its_end
from cinesynth.session import check_room
from cinesynth.storage import Storage, public_uri, sha256_json
from cinesynth.wan.family import Family
from cinesynth.wan.folder import encoder_hash, model_spec

log = logging.getLogger(__name__)

_AT_ONCE = 40_000  # windows in one graph: Ray Data keeps something of every block


def open_dataset(storage: str, name: str) -> Storage:
    """Where the dataset `name` lies below a storage location."""
    return Storage.open(storage).child("datasets", name)


def check_inputs(settings: PrepareSettings, model: str) -> None:
    """Raise ConfigError for what the model cannot make, and for footage, packages or weights that are missing on this
    machine; needs no Ray."""
    settings.window.check_model(model_spec(model))
    check_footage(settings.footage)
    make_decoder(settings.decode.backend)
    make_cut_detector(settings.shots)
    check_models(settings)


def check_readers(resources: PrepareResources) -> None:
    """Raise ConfigError where the connected cluster has no node that may read footage: Ray would wait for ever."""
    if resources.decode.labels:
        try:
            check_room(1, resources.decode.cpus, 0.0, resources.readers())
        except ConfigError as e:
            raise ConfigError(f"resources.decode.labels: {e}") from e


@records_its_end
def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Prepare a clips dataset on the connected Ray cluster; returns the run's result.

    Raises IdentityError when the run's name stands for other settings or encoders, RunTaken when another driver works
    on it, DatasetError when no window comes out, and StorageError when the disk is full: what is committed stays, and
    the same command goes on.
    """
    import ray

    try:
        return _prepare(config)
    except (OSError, ray.exceptions.RayError) as e:
        if os.strerror(errno.ENOSPC) not in str(e) and not isinstance(e, ray.exceptions.OutOfDiskError):
            raise
        where = f"{config.name!r} in {public_uri(config.storage)} (or on a node's own disk)"
        raise StorageError(
            f"{os.strerror(errno.ENOSPC)} while preparing {where}; "
            "make room and give the same command again: it goes on from what is committed"
        ) from e


def _prepare(config: PrepareConfig) -> dict[str, Any]:
    import ray

    _quiet_ray_data()
    encoders = encoder_hash(config.model)
    config = config.model_copy(update={"resources": fitted(config.resources, ray.cluster_resources())})
    check_readers(config.resources)
    run = Run.open(config, inputs={"model": encoders})
    # A plan says which shards and windows count: two runs of one name would publish one's plan of the other's shards.
    with held(run) as lease:
        return _prepare_alone(config, run, encoders, lease)


def _prepare_alone(config: PrepareConfig, run: Run, encoders: str, lease: Lease) -> dict[str, Any]:
    """What `prepare` does while it holds the run."""
    started = time.monotonic()
    family = model_spec(config.model).family
    dataset = open_dataset(config.storage, config.name)
    # As it was recorded first: what later versions add to a configuration is no other plan.
    identity = sha256_json({"identity": run.recorded_identity(), "inputs": {"model": encoders}})
    planned = read_plan(dataset, identity)
    files, rejects = read_files(config, dataset)
    known = sorted(source_key(f.source, f.sha256) + repr((f.source, f.captions)) for f in files)
    footage = sha256_json([known, sorted(withdrawn(dataset))])
    result = run.result()
    if result is not None and result["outputs"].get("footage_sha256") == footage and dataset.exists("manifest.json"):
        failed = {why: n for why, n in dataset.read_json("manifest.json")["rejected"].items() if why in RETRIED}
        if not failed:
            log.info("prepare %s: already complete", config.name)
            return result
        log.info("prepare %s: trying again what failed before: %s", config.name, failed)
    commits = Commits(dataset, lease.check)
    windows, more = plan_windows(config, dataset, planned, files, _encoded(dataset, planned, commits))
    rejects += more
    commits.verify()
    write_plan(dataset, identity, windows)
    if not windows:
        raise DatasetError(f"no window came out of {len(files)} files: {explain(rejects)}")
    windows, more = _encode_captions(config, dataset, windows)
    rejects += more
    show_plan(config.name, len(windows), (reject.reason for reject in rejects))
    rejects += _encode(config, dataset, family, encoders, windows, commits)
    show_plan(config.name, len(windows), (reject.reason for reject in rejects))
    facts = {
        "name": config.name,
        "model": config.model,
        "family": family.name,
        "encoder_hash": encoders,
        "window": config.window.model_dump(mode="json"),
        "unmeasured": unavailable(config),
        "empty_prompt": empty_prompt_entry(dataset),
    }
    commits.verify()
    _remove_uncommitted(dataset, commits)
    manifest = publish(dataset, facts, rejects, commits)
    rejected = read_rejects(dataset)
    figures = {"windows": manifest["windows"], "rejected": len(rejected), "sources": len(files)}
    for split in SPLITS:
        figures |= {f"{split}_{key}": value for key, value in manifest["splits"][split].items()}
    figures |= {f"captions/{place}": count for place, count in manifest["captions"].items()}
    figures["seconds"] = round(time.monotonic() - started, 1)
    outputs = {
        "dataset": dataset.uri,
        "manifest_sha256": manifest["content_sha256"],
        "footage_sha256": footage,
        "page": f"{dataset.uri}/index.html",
    }
    return run.finish(outputs, figures, left_out(rejected))


def plan_footage(config: PrepareConfig, dataset: Storage) -> tuple[list[Window], list[Reject]]:
    """Windows and rejects of all footage as `prepare` would plan them, without encoding; `dataset` takes the scans."""
    _quiet_ray_data()
    files, rejects = read_files(config, dataset)
    windows, more = plan_windows(config, dataset, [], files, {})
    return windows, rejects + more


def plan_windows(
    config: PrepareConfig,
    dataset: Storage,
    before: list[Window],
    files: list[File],
    encoded: Mapping[str, str],
) -> tuple[list[Window], list[Reject]]:
    """The windows of the dataset with group and split: those it had, and those that are new.

    Args:
        config: of the run.
        dataset: holds and takes the scans and the annotations.
        before: the plan that is stored.
        files: the footage.
        encoded: windows of `before` that are encoded, with the captions they are encoded with.
    """
    scans, rejects = scan_files(config, dataset, files)
    write_sources(dataset, files, scans)
    windows, more = cut_files(config, files, scans)
    rejects += more
    # Models see only what passes the filters on the other scores.
    windows, more = filter_windows(windows, config.filters)
    rejects += more
    windows, more = annotate_windows(config, dataset, windows)
    rejects += more
    windows, more = filter_windows(windows, config.filters)
    rejects += more
    windows, more = settle_windows(config, scans, windows, before, encoded, withdrawn(dataset))
    rejects += more
    log.info("planned %d windows of %d files; %d rejects", len(windows), len(files), len(rejects))
    return windows, rejects


# --- encode --------------------------------------------------------------------------------------------------


def _encode_captions(
    config: PrepareConfig, dataset: Storage, windows: list[Window]
) -> tuple[list[Window], list[Reject]]:
    """Store the embeddings of all captions and of the empty one; returns the windows whose captions have one."""
    import ray

    stored = set(dataset.list("prompts"))
    missing = sorted(caption for caption in {*(w.caption for w in windows), ""} if prompt_file(caption) not in stored)
    errors: dict[str, str] = {}
    if missing:
        resources = config.resources.text
        rows = ray.data.from_items(
            [{"caption": c} for c in missing], override_num_blocks=min(len(missing), resources.workers)
        )
        encoded = rows.map_batches(
            EncodeCaptions,
            fn_constructor_args=(config.model, device_of(resources), dataset.reference()),
            **actor_stage(resources, config.resources) | {"batch_size": 64},
        )
        errors = {row["caption"]: row["error"] for row in encoded.iter_rows() if row["error"]}
    if "" in errors:
        raise ModelError(f"{config.model}: the empty caption cannot be encoded: {errors['']}")
    return [w for w in windows if w.caption not in errors], [
        Reject(w.source_uri, "not_finite", f"its caption cannot be encoded: {errors[w.caption]}", w.window_id)
        for w in windows
        if w.caption in errors
    ]


def _encode(
    config: PrepareConfig,
    dataset: Storage,
    family: Family,
    encoders: str,
    windows: list[Window],
    commits: Commits,
) -> list[Reject]:
    """Encode and commit the windows that no commit settles. Returns the rejects among them.

    Windows that a dying node or worker held are encoded again, as long as each attempt gets something done.
    """
    import ray

    rows = {row_id(w.window_id, w.caption): w for w in windows}
    failed: set[str] = set()
    # By bucket and file, as blocks are.
    order = sorted(rows, key=lambda key: block_order(rows[key]))
    while left := [key for key in order if key not in commits.done and key not in failed]:
        pending = {key: rows[key] for key in left[:_AT_ONCE]}
        before = len(commits.done) + len(failed)
        committed = len(rows) - len(left)
        log.info("encoding %d windows%s", len(left), f"; {committed} are committed already" if committed else "")
        progress = Progress("encode", config.name, len(rows), "windows", done=len(rows) - len(left))
        writer = ShardWriter(dataset, commits, family, encoders, config.shard_mb * 1e6, config.shard_s, progress.add)
        try:
            writer.run(encode_graph(config, dataset, family, pending.values()).iter_internal_ref_bundles())
        except ray.exceptions.RayError as e:
            if len(commits.done) + len(failed | writer.failed) == before:
                raise
            log.warning("encoding was interrupted, going on with what is left: %s", str(e).splitlines()[0])
        else:
            lost = len(pending.keys() - commits.done - writer.failed)
            if lost:
                raise DatasetError(f"{lost} windows came back neither encoded nor rejected; this is a bug")
        failed |= writer.failed
    return commits.rejects(rows)


def encode_graph(config: PrepareConfig, dataset: Storage, family: Family, windows: Iterable[Window]) -> Any:
    """The Ray Data graph from windows to encoded rows; the model's family says whether there is an image encoder."""
    import ray

    decode, vae, clip = config.resources.decode, config.resources.vae, config.resources.clip
    blocks = to_blocks(windows)
    coded = (
        ray.data.from_arrow(blocks)
        .map_batches(
            DecodeWindows,
            fn_constructor_args=(DecodeSettings.model_validate(config.decode), dataset.reference()),
            **actor_stage(
                StageResources(workers=min(decode.workers or 1, len(blocks)), cpus=decode.cpus),
                config.resources.decoders(),
            ),
        )
        .map_batches(
            EncodeLatents,
            fn_constructor_args=(config.model, device_of(vae), config.vae_dtype),
            **actor_stage(vae, config.resources),
        )
    )
    if not family.image_encoder:
        return coded
    return coded.map_batches(
        EncodeImages, fn_constructor_args=(config.model, device_of(clip)), **actor_stage(clip, config.resources)
    )


def publish(dataset: Storage, facts: dict[str, Any], rejects: list[Reject], commits: Commits) -> dict[str, Any]:
    """Assemble the dataset of its plan, without what was withdrawn while the run went on; returns the manifest."""
    planned = read_plan(dataset)
    while True:
        gone = set(withdrawn(dataset))
        manifest = assemble(dataset, facts, planned, rejects, commits, write_dataset_page)
        if set(withdrawn(dataset)) == gone:  # else one more was withdrawn meanwhile
            break
    kept = {pixels_file(w.window_id) for w in planned if w.source_sha256 not in gone}
    for name in dataset.list("pixels"):  # a withdrawn source's windows may have been encoded after its withdrawal
        if name not in kept:
            dataset.delete(name)
    return manifest


def _remove_uncommitted(dataset: Storage, commits: Commits) -> None:
    """Shards that were written but not committed before a kill."""
    committed = {commit["shard"]["file"] for commit in commits if "shard" in commit}
    for name in dataset.list("shards"):
        if name not in committed:
            dataset.delete(name)
    for folder in ("shards", "pixels", "commits"):
        dataset.sweep(folder)


def _encoded(dataset: Storage, planned: list[Window], commits: Commits) -> dict[str, str]:
    """Id to caption of the windows that are encoded as planned, or published with another caption."""
    published = {}
    if dataset.exists("manifest.json"):
        published = {w.window_id: w.caption for w in ClipsDataset.open(dataset).windows()}
    places = commits.places()
    return published | {w.window_id: w.caption for w in planned if row_id(w.window_id, w.caption) in places}


def _quiet_ray_data() -> None:
    """Our progress lines replace Ray Data's bars and plans, which hide them in a job's log."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # its note that there are no bars
