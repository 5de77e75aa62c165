"""The page of a pipeline: what came in, how it was trained, what the adapter makes of held-out windows, the numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from cinesynth.config import PipelineConfig
from cinesynth.data.dataset import SPLITS, ClipsDataset, WindowRow
from cinesynth.errors import DatasetError
from cinesynth.metrics.record import MetricsRecord
from cinesynth.outline import sized
from cinesynth.report.filmstrips import make_scenes
from cinesynth.report.page import write_page
from cinesynth.report.sheet import contact_sheet
from cinesynth.report.training import Training
from cinesynth.report.values import Tables
from cinesynth.report.verdict import verdict
from cinesynth.runs import Run, complete_result
from cinesynth.storage import Storage

_SHEET_WINDOWS = 24
_SHEET_BYTES = 1_500_000


def write_report(config: PipelineConfig, run: Run) -> str:
    """Write `report.html` and `videos/*.mp4` into the pipeline's run folder; returns the page's uri.

    A step that has no result yet is no error: the page says so.
    """
    storage = Storage.open(config.storage)
    results = {step: _result(storage, config.name, step) for step in config.steps()}
    evaluated = storage.child("runs", f"{config.name}-evaluate")
    clips = ClipsPart.read(storage.child("datasets", f"{config.name}-prepare"))
    trainings = [
        (stage, Training.read(settings, storage.child("runs", f"{config.name}-{stage}")))
        for stage, settings in config.stages().items()
        if results[stage]
    ]
    record = None
    if results["evaluate"]:
        record = MetricsRecord.parse(evaluated.read_json("metrics.json"), evaluated.uri)
    domains = {w.window_id: w.domain for w in clips.windows} if clips else {}
    return write_page(
        run.folder,
        "report.html",
        "pipeline.html.j2",
        config=config,
        run=run,
        verdict=verdict(trainings, record),
        summary=_summary(config, results, clips),
        scenes=make_scenes(
            storage.child("runs", f"{config.name}-generate"), run.folder, ["real", *config.arms()], domains
        ),
        tables=Tables.of(record, config.evaluate.metrics) if record else None,
        trainings=trainings,
        clips=clips,
        facts=_facts(config),
        origins=_origins(config, run, results, clips),
    )


@dataclass(frozen=True)
class ClipsPart:
    """What the page shows of the dataset."""

    manifest: dict[str, Any]
    sha256: str
    windows: list[WindowRow]
    sheet: list[tuple[WindowRow, str]]

    @classmethod
    def read(cls, location: Storage) -> ClipsPart | None:
        """From a complete dataset; None when there is none."""
        try:
            dataset = ClipsDataset.open(location)
        except DatasetError:
            return None
        windows = sorted(dataset.windows(), key=lambda w: (w.domain, w.source_uri, w.start_s))
        shards = [shard["file"] for shard in dataset.manifest["shards"]]
        sheet = contact_sheet(location, shards, windows, _SHEET_WINDOWS, _SHEET_BYTES)
        return cls(dataset.manifest, dataset.manifest_sha256, windows, sheet)

    def count_rows(self) -> list[tuple[str, list[str]]]:
        """(domain, windows and groups of each split and of all), then a row over all domains."""
        domains = sorted({w.domain for w in self.windows})
        rows = [(name, [w for w in self.windows if w.domain == name]) for name in domains]
        if len(rows) > 1:
            rows.append(("all", self.windows))
        return [(name, [_counted(members, split) for split in (*SPLITS, None)]) for name, members in rows]

    def empty_splits(self) -> list[str]:
        """Splits without a window."""
        held = Counter(w.split for w in self.windows)
        return [split for split in SPLITS if not held[split]]


def _counted(windows: list[WindowRow], split: str | None) -> str:
    members = [w for w in windows if split in (None, w.split)]
    return f"{len(members):,} in {sized(len({w.group for w in members}), 'group')}" if members else "none"


def _result(storage: Storage, pipeline: str, step: str) -> dict[str, Any] | None:
    return complete_result(storage.child("runs", f"{pipeline}-{step}"))


def _summary(
    config: PipelineConfig, results: dict[str, dict[str, Any] | None], clips: ClipsPart | None
) -> list[tuple[str, str]]:
    """The line under the verdict: (name, value), hashes shortened."""
    trained, publish = results[list(config.stages())[-1]], results["publish"]
    versions = sorted({str(result["code_version"]) for result in results.values() if result})
    return [
        ("model", config.model),
        ("dataset", clips.sha256[:12] if clips else "missing"),
        ("adapter", trained["figures"]["adapter_sha256"][:12] if trained else "not trained"),
        ("published as", publish["outputs"]["adapter"] if publish else "not published"),
        ("cinesynth", ", ".join(versions) or "unknown"),
        ("seed", f"{config.style.seed} (training), {config.generate.sampler.seed} (generation)"),
    ]


def _facts(config: PipelineConfig) -> list[tuple[str, str]]:
    """How the held-out windows were generated."""
    s = config.generate.sampler
    guidance = f"{s.guidance_scale:g}" if s.guidance_scale > 1 else "none"
    return [
        ("split", config.generate.split or "none: shots were given"),
        ("sampling steps", str(s.steps)),
        ("guidance", guidance),
        ("flow shift", "the model's own" if s.flow_shift is None else f"{s.flow_shift:g}"),
        ("seed", f"{s.seed}, the same noise for each arm of a window"),
    ]


def _origins(
    config: PipelineConfig, run: Run, results: dict[str, dict[str, Any] | None], clips: ClipsPart | None
) -> list[tuple[str, str]]:
    """Whole hashes and places of everything that the page was made from."""
    rows = [("pipeline run", run.folder.uri), ("base model", config.model)]
    if results["style"]:
        rows.append(("base model sha256", results["style"]["inputs"].get("base", "not recorded")))
    stages = list(config.stages())
    for stage in stages:
        if trained := results[stage]:
            named = "adapter sha256" if len(stages) == 1 else f"{stage} adapter sha256"
            rows.append((named, trained["figures"]["adapter_sha256"]))
    if results["publish"]:
        rows.append(("published content sha256", results["publish"]["figures"]["sha256"]))
    if clips:
        rows += [("dataset sha256", clips.sha256), ("encoders sha256", clips.manifest["encoder_hash"])]
    for step in config.steps():
        result = results[step]
        state = f"complete, cinesynth {result['code_version']}" if result else "no result"
        rows.append((f"run {config.name}-{step}", state))
    return rows
