"""A finished pipeline's folders, written with the real writers: dataset, runs, videos, metrics."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import cinesynth
from cinesynth.config import (
    EvaluateConfig,
    EvaluateSettings,
    GenerateConfig,
    PipelineConfig,
    PrepareConfig,
    PublishConfig,
    TrainConfig,
)
from cinesynth.data.dataset import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    row_sha256,
    tensor_columns,
    write_shard,
    write_table,
)
from cinesynth.data.encode.encode import preview
from cinesynth.data.video import write_video
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import definition_of
from cinesynth.metrics.metric import Sample
from cinesynth.metrics.record import MetricsRecord
from cinesynth.pictures import Frames
from cinesynth.runs import Run
from cinesynth.scripted.series import scripted_clip
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_json
from cinesynth.wan.family import WAN21_I2V

FRAMES, HEIGHT, WIDTH, STEPS = 17, 64, 96, 40
HOSTILE = "<script>alert('x')</script> & a red ball"
DOMAINS = ("scripted", "film")


@dataclass(frozen=True)
class Window:
    """One window: its row in the dataset, and its pixels."""

    row: dict[str, Any]
    frames: Frames


def pipeline_config(storage: Path, **changes: Any) -> PipelineConfig:
    """A small pipeline's configuration."""
    return parse_config(
        PipelineConfig,
        {
            "name": "p",
            "storage": str(storage),
            "prepare": {
                "footage": [{"path": "footage"}],
                "window": {"num_frames": FRAMES, "sizes": f"{WIDTH}x{HEIGHT}"},
            },
            "style": {"optimizer": {"steps": STEPS, "lr": 0.01}, "seed": 7},
            "generate": {"split": "test", "sampler": {"steps": 8, "guidance_scale": 1.0}},
            "publish": {"adapter_name": "nano-style"},
            **changes,
        },
    )


def make_windows(train: int = 8, val: int = 2, test: int = 10) -> list[Window]:
    """Windows of scripted clips, each its own group but for the last two of test; the first caption is hostile."""
    made = []
    for index, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        clip = scripted_clip(0, index % 6, HEIGHT, WIDTH, 16)
        frames = np.roll(clip.frames[:FRAMES], index * 5, axis=2)
        name = hashlib.sha256(f"{index}".encode()).hexdigest()
        row = {
            "window_id": name,
            "source_uri": f"/footage/clip{index:02d}.mp4",
            "source_sha256": name,
            "shot_id": f"{name[:16]}-0",
            "group": f"group{min(index, train + val + test - 2):02d}",
            "start_s": 0.0,
            "end_s": FRAMES / 16,
            "fps": 16,
            "num_frames": FRAMES,
            "height": HEIGHT,
            "width": WIDTH,
            "bucket": f"{WIDTH}x{HEIGHT}x{FRAMES}",
            "caption": f"{clip.caption} {HOSTILE}",
            "domain": DOMAINS[index % 2],
            "split": split,
            "scores": [],
        }
        made.append(Window(row, frames))
    return made


def write_dataset(location: Storage, windows: list[Window], rejected: dict[str, int]) -> str:
    """A complete dataset in one shard; returns its hash."""
    tensors: dict[str, Any] = {}
    for name in WAN21_I2V.tensors:
        tensors |= tensor_columns(name, torch.zeros(2, 3))
    rows = [
        {
            **w.row,
            "frame_pts": list(range(FRAMES)),
            "box": [0.0, 0.0, float(WIDTH), float(HEIGHT)],
            "encoder_hash": "e" * 64,
            "preview": preview(w.frames),
        }
        | tensors
        for w in windows
    ]
    shard = write_shard(location, WAN21_I2V, rows)
    index = [w.row | {"shard": shard["file"], "row": place} for place, w in enumerate(windows)]
    write_table(location, "index.parquet", pa.Table.from_pylist(index, schema=INDEX_SCHEMA))
    empty = tensor_columns("prompt_embeds", torch.zeros(1, 3))
    write_table(location, "prompts/0.parquet", pa.Table.from_pylist([empty]))
    content = sha256_json([w.row["window_id"] for w in windows])
    manifest = {
        "schema": SCHEMA_VERSION,
        "kind": "clips",
        "name": "p-prepare",
        "model": "nano",
        "encoder_hash": "e" * 64,
        "window": {"fps": 16},
        "windows": len(windows),
        "buckets": {f"{WIDTH}x{HEIGHT}x{FRAMES}": {"windows": len(windows)}},
        "rejected": rejected,
        "index": {"file": "index.parquet", "sha256": location.sha256("index.parquet")},
        "empty_prompt": {"file": "prompts/0.parquet", "sha256": row_sha256(empty, ["prompt_embeds"])},
        "shards": [shard],
        "content_sha256": content,
    }
    location.write_json("manifest.json", manifest)
    return content


def write_training(config: PipelineConfig, held_out: bool = True) -> Run:
    """A finished style run with the events that the loop writes."""
    random = np.random.default_rng(0)
    common = {"name": f"{config.name}-style", "storage": config.storage, "dataset": f"{config.name}-prepare"}
    run = Run.open(parse_config(TrainConfig, {**config.style.model_dump(mode="json"), **common}), {"base": "b" * 64})
    events: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        if step:
            rate = 0.005 * (1 + math.cos(math.pi * step / STEPS))
            loss = 0.4 + 0.3 * math.exp(-step / 12) + 0.08 * float(random.random())
            events.append({"step": step, "loss": loss, "lr": rate, "grad_norm": 0.5})
        if held_out and step % 10 == 0:
            losses = {
                f"val_loss/{s}": (0.4 + s) * (0.75 + 0.25 * math.exp(-step / 15 * s)) for s in (0.2, 0.4, 0.6, 0.8)
            }
            events.append({"step": step, "val_loss": sum(losses.values()) / 4, **losses})
        if step in (20, STEPS):
            run.write_events(f"train-{step:08d}", events)
            events = []
    run.finish({"adapter": run.folder.child("adapter").uri}, {"adapter_sha256": "a1" * 32})
    return run


def write_videos(config: PipelineConfig, windows: list[Window]) -> None:
    """A finished generate run: the adapter's videos are the real ones with a little noise, the base's are still."""
    common = {"name": f"{config.name}-generate", "storage": config.storage, "dataset": f"{config.name}-prepare"}
    run = Run.open(parse_config(GenerateConfig, {**config.generate.model_dump(mode="json"), **common}))
    root = Path(run.folder.path)
    random = np.random.default_rng(0)
    lines = ["video,group,caption"]
    for window in windows:
        noise = random.normal(0, 12, window.frames.shape)
        adapter = np.clip(window.frames + noise, 0, 255).astype(np.uint8)
        base = np.repeat(adapter[:1], FRAMES, axis=0)
        name = window.row["window_id"]
        for arm, frames in (("real", window.frames), ("base", base), ("adapter", adapter)):
            write_video(root / f"videos/{arm}/{name}.mkv", frames, 16, "ffv1")
        caption = window.row["caption"].replace('"', '""')
        lines.append(f'{name},{window.row["group"]},"{caption}"')
    run.folder.write_text("groups.csv", "\n".join(lines) + "\n")
    run.finish({"videos": run.folder.child("videos").uri}, {"videos": 2 * len(windows)})


def make_record(windows: list[Window], better: float = 1.0, without: tuple[str, ...] = ()) -> MetricsRecord:
    """A record that the real statistics made of drawn features; `better` moves the adapter towards the real set."""
    random = np.random.default_rng(0)
    ids = [w.row["window_id"] for w in windows]
    groups = {w.row["window_id"]: w.row["group"] for w in windows}
    features = random.normal(size=(len(ids), 400))

    def sample(name: str, shift: float) -> Sample:
        rows = features + shift + random.normal(0, 0.05, features.shape)
        return Sample(name, dict(zip(ids, rows, strict=True)), groups)

    def distances(name: str) -> Sample:
        if "lpips" in without:
            return Sample(name, {}, groups, "no weights for LPIPS")
        return Sample(name, {key: random.normal(0.3, 0.04, FRAMES) for key in ids}, groups)

    real, arms = sample("real", 0), [sample("base", 1.0), sample("adapter", 1.0 - better)]
    paired = [Sample("real", {}, groups), distances("base"), distances("adapter")]
    metrics = [
        m for m in catalogue.chosen(["fvd", "kvd", "lpips"]) if not m.beside and m.name not in {*without} - {"lpips"}
    ]
    made = [m.measure(m, *((paired[0], paired[1:]) if m.network.pair else (real, arms))) for m in metrics]
    settings = EvaluateSettings()
    return MetricsRecord(
        code_version=cinesynth.__version__,
        arms=["base", "adapter"],
        definitions={m.name: definition_of(m, settings, (FRAMES, FRAMES), "cpu") for m in metrics},
        values=[v for results in made for v in results.values],
        comparisons=[c for results in made for c in results.comparisons],
        warnings=[w for results in made for w in results.warnings],
        environment={},
    )


def write_pipeline(
    config: PipelineConfig, windows: list[Window], record: MetricsRecord | None, held_out: bool = True
) -> Run:
    """A pipeline whose steps are finished, but for the evaluation where there is no record; returns its run."""
    storage = Storage.open(config.storage)
    common = {"storage": config.storage}
    dataset = write_dataset(storage.child("datasets", f"{config.name}-prepare"), windows, {"shot_too_short": 3})
    prepare = {**config.prepare.model_dump(mode="json"), **common, "name": f"{config.name}-prepare"}
    Run.open(parse_config(PrepareConfig, prepare)).finish({"manifest_sha256": dataset}, {})
    write_training(config, held_out)
    write_videos(config, [w for w in windows if w.row["split"] == "test"])
    if record is not None:
        evaluate = {**common, "name": f"{config.name}-evaluate", "real": "r", "arms": {"base": "b"}}
        run = Run.open(parse_config(EvaluateConfig, evaluate))
        run.folder.write_json("metrics.json", record.to_json())
        run.finish({"metrics": run.folder.child("metrics.json").uri}, record.figures())
    publish = {**common, "name": f"{config.name}-publish", "adapter": "p-style", "adapter_name": "nano-style"}
    Run.open(parse_config(PublishConfig, publish)).finish({"adapter": "nano-style@abcdef123456"}, {"sha256": "f" * 64})
    return Run.open(config)
