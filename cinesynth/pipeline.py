"""The whole path as one job: each step is a run of its own, and a finished step is skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cinesynth.config import (
    PIPELINE_STEPS,
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
from cinesynth.runs import Run, records_its_end
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.driver import train

log = logging.getLogger("cinesynth.pipeline")


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: a job whose configuration is made of the pipeline's.

    Attributes:
        config: the job's configuration class.
        job: what runs it.
        ties: the fields that tie the step to the steps before it.
    """

    config: type[JobConfig]
    job: Callable[[Any], dict[str, Any]]
    ties: dict[str, Any]


def steps(config: PipelineConfig) -> dict[str, Step]:
    """The steps by name, in order."""
    base = config.name
    model = {"model": config.model}
    dataset = {"dataset": f"{base}-prepare"}
    trained = [{"ref": f"{base}-style", "scale": 1.0}]

    def made(*parts: str) -> str:
        return Storage.below(config.storage, "runs", f"{base}-generate", *parts)

    compared = {
        "real": made("videos", "real"),
        "arms": {arm: made("videos", arm) for arm in ("base", "adapter")},
        "groups": made("groups.csv"),
    }
    found = {
        "prepare": Step(PrepareConfig, prepare, model),
        "style": Step(TrainConfig, train, model | dataset),
        "generate": Step(GenerateConfig, generate, model | dataset | {"adapters": trained}),
        "evaluate": Step(EvaluateConfig, evaluate, compared),
        "publish": Step(PublishConfig, publish, {"adapter": f"{base}-style"}),
    }
    return {name: found[name] for name in PIPELINE_STEPS}


@records_its_end
def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """Prepare, style, generate, evaluate, publish; continues at the first step that is not complete."""
    run = Run.open(config)
    outputs: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    with ray_session(config):
        for name, step in steps(config).items():
            started = time.monotonic()
            log.info("=== %s", name)
            common = {"name": f"{config.name}-{name}", "storage": config.storage, "ray": config.ray.model_dump()}
            settings = getattr(config, name).model_dump(mode="json")
            result = step.job(parse_config(step.config, {**settings, **step.ties, **common}, where=f"step {name}"))
            outputs |= {f"{name}/{key}": value for key, value in result["outputs"].items()}
            figures |= {f"{name}/{key}": value for key, value in result["figures"].items()}
            left_out |= {f"{name}/{key}": value for key, value in result.get("left_out", {}).items()}
            log.info("=== %s: done in %.0f s", name, time.monotonic() - started)
    outputs["report"] = write_report(config, run)
    return run.finish(outputs, figures, left_out)
