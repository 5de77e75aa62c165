"""The whole path as one job: each step is a run of its own, and a finished step is skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from cinesynth.config import (
    EvaluateConfig,
    GenerateConfig,
    JobConfig,
    PipelineConfig,
    PrepareConfig,
    PublishConfig,
    TrainConfig,
)
from cinesynth.data.prepare import prepare
from cinesynth.generate.driver import generate
from cinesynth.metrics.evaluate import evaluate
from cinesynth.publish import publish
from cinesynth.report.pipeline import write_report
from cinesynth.runs import Run
from cinesynth.session import ray_session
from cinesynth.settings import Settings, parse_config
from cinesynth.storage import Storage
from cinesynth.train.driver import train

log = logging.getLogger("cinesynth.pipeline")

Step = tuple[str, type[JobConfig], Callable[[Any], dict[str, Any]], Settings, dict[str, Any]]


def steps(config: PipelineConfig) -> list[Step]:
    """(name, configuration class, job, settings, fields that tie it to the steps before), in order."""
    base = config.name
    model = {"model": config.model}

    def made(*parts: str) -> str:
        return Storage.below(config.storage, "runs", f"{base}-generate", *parts)

    trained = [{"ref": f"{base}-style", "scale": 1.0}]
    return [
        ("prepare", PrepareConfig, prepare, config.prepare, model),
        ("style", TrainConfig, train, config.style, {**model, "dataset": f"{base}-prepare"}),
        (
            "generate",
            GenerateConfig,
            generate,
            config.generate,
            {**model, "dataset": f"{base}-prepare", "adapters": trained},
        ),
        (
            "evaluate",
            EvaluateConfig,
            evaluate,
            config.evaluate,
            {
                "real": made("videos", "real"),
                "arms": {arm: made("videos", arm) for arm in ("base", "adapter")},
                "groups": made("groups.csv"),
            },
        ),
        ("publish", PublishConfig, publish, config.publish, {"adapter": f"{base}-style"}),
    ]


def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """Prepare, style, generate, evaluate, publish; continues at the first step that is not complete."""
    run = Run.open(config)
    outputs: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    with ray_session(config):
        for name, cls, job, settings, ties in steps(config):
            started = time.monotonic()
            log.info("=== %s", name)
            common = {"name": f"{config.name}-{name}", "storage": config.storage, "ray": config.ray.model_dump()}
            step = parse_config(cls, {**settings.model_dump(mode="json"), **ties, **common}, where=f"step {name}")
            result = job(step)
            outputs |= {f"{name}/{key}": value for key, value in result["outputs"].items()}
            figures |= {f"{name}/{key}": value for key, value in result["figures"].items()}
            log.info("=== %s: done in %.0f s", name, time.monotonic() - started)
    outputs["report"] = write_report(config, run)
    return run.finish(outputs, figures)
