"""What `prepare` would do: which files it finds, what of them is new, what it would scan and encode."""

from __future__ import annotations

from collections import Counter

from cinesynth.config import PrepareConfig
from cinesynth.data.config import StageResources
from cinesynth.data.dataset import read_table
from cinesynth.data.footage.search import find_sources, written_by_jobs
from cinesynth.data.footage.sources import Source, fingerprint, is_remote
from cinesynth.data.records import explain
from cinesynth.data.scan.stored_scans import Scans
from cinesynth.errors import DatasetError, MediaError
from cinesynth.outline import Facts, Outline, cluster_of, sized, state_of
from cinesynth.storage import Storage, public_uri
from cinesynth.wan.folder import encoder_hash


def outline_prepare(config: PrepareConfig) -> Outline:
    """Look at the footage without decoding any. Raises CinesynthError as `prepare` would before it reads footage."""
    sources, rejects = find_sources(config.footage, written_by_jobs(config.storage))
    if not sources:
        raise DatasetError("footage: there is no video file" + (f": {explain(rejects)}" if rejects else ""))
    encoders = encoder_hash(config.model)
    dataset = Storage.open(config.storage).child("datasets", config.name)
    inputs: Facts = [("model", f"{config.model} (encoders {encoders[:12]})")]
    inputs += [("footage", f"{sized(n, 'file')} of domain {domain}") for domain, n in sorted(_domains(sources).items())]
    inputs += [("left out", explain(rejects))] if rejects else []
    return Outline(
        title=f"prepare {config.name}",
        state=state_of(config, {"model": encoders}),
        inputs=inputs,
        work=[*_work(config, dataset, sources), ("windows", _windows(config)), ("dataset", dataset.uri)],
        resources=_resources(config),
    )


def _domains(sources: list[Source]) -> Counter[str]:
    return Counter({s.location: s.domain for s in sources}.values())


def _work(config: PrepareConfig, dataset: Storage, sources: list[Source]) -> Facts:
    """What is to hash and to scan: a file is known by its place, size and time, a scan by content."""
    rows = read_table(dataset, "files.parquet").to_pylist() if dataset.exists("files.parquet") else []
    known = {row["uri"]: row for row in rows}
    scans = Scans(dataset, config.shots.model_dump(mode="json"))
    new, unscanned, new_bytes = 0, 0, 0
    for location in sorted({source.location for source in sources}):
        row = known.get(public_uri(location))
        try:
            stamp = None if is_remote(location) else fingerprint(location)
        except MediaError:
            continue  # prepare rejects it
        if row is None or (stamp is not None and stamp != (row["size"], row["changed"])):
            new, new_bytes = new + 1, new_bytes + (stamp[0] if stamp else 0)
        elif row["sha256"] not in scans:
            unscanned += 1
    return [
        ("hash", f"{sized(new, 'new file')} ({new_bytes / 1e9:.2f} GB on local disks)"),
        ("scan", f"{sized(new + unscanned, 'file')} by {config.shots.detector}; the others are scanned"),
    ]


def _windows(config: PrepareConfig) -> str:
    window = config.window
    lengths, sizes = ", ".join(map(str, window.num_frames)), ", ".join(window.sizes)
    return f"of {lengths} frames at {window.fps} fps in {sizes}; how many is known after the scan"


def _resources(config: PrepareConfig) -> Facts:
    resources = config.resources
    decode = resources.decode
    named: dict[str, StageResources] = {name: getattr(resources, name) for name in ("vae", "clip", "text")}
    if config.detect_text or config.aesthetic or config.captioner.model:
        named["models"] = resources.models
    where = f", on {resources.readers().told()}, where files are hashed and scanned" if decode.labels else ""
    each = f"{decode.workers or 'as many as fit'} of {decode.cpus:g} CPUs each{where}"
    facts = [cluster_of(config), ("decode", each)]
    for name, stage in named.items():
        gpus = f" and {stage.gpus:g} GPUs" if stage.gpus else ""
        facts.append((name, f"{stage.workers} of {stage.cpus:g} CPUs{gpus} each"))
    if resources.told():
        facts.append(("nodes", resources.told()))
    return facts
