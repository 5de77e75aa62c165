"""The whole path as one job: each step is a run of its own, and a finished step is skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from cinesynth.data.outline import outline_prepare
from cinesynth.data.prepare import prepare
from cinesynth.errors import CinesynthError, IdentityError
from cinesynth.generate.driver import generate
from cinesynth.generate.outline import outline_generation
from cinesynth.generate.windows import held_out_windows
from cinesynth.locate import locate_dataset
from cinesynth.metrics.evaluate import computable, evaluate
from cinesynth.metrics.outline import outline_evaluation
from cinesynth.outline import Outline, cluster_of
from cinesynth.publish import outline_publishing, publish
from cinesynth.report.pipeline import write_report
from cinesynth.runs import Run, records_its_end
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.driver import train
from cinesynth.train.outline import outline_training

log = logging.getLogger("cinesynth.pipeline")


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: a job whose configuration is made of the pipeline's.

    Attributes:
        config: the job's configuration class.
        job: what runs it.
        outline: says what the job would do.
        ties: the fields that tie the step to the steps before it.
    """

    config: type[JobConfig]
    job: Callable[[Any], dict[str, Any]]
    outline: Callable[[Any], Outline]
    ties: dict[str, Any]


def steps(config: PipelineConfig) -> dict[str, Step]:
    """The steps by name, in order."""
    base = config.name
    model = {"model": config.model}
    dataset = {"dataset": f"{base}-prepare"}
    arms = {arm: [{"ref": ref, "scale": 1.0} for ref in refs] for arm, refs in config.arms().items()}
    adapters: dict[str, Any] = {"arms": arms} if config.motion else {"adapters": arms["adapter"]}
    motion: dict[str, Any] = {"parents": [{"ref": f"{base}-style", "scale": 1.0}]}
    if config.motion and "stage" not in config.motion.model_fields_set:
        motion["stage"] = "motion"

    def made(*parts: str) -> str:
        return Storage.below(config.storage, "runs", f"{base}-generate", *parts)

    compared = {
        "real": made("videos", "real"),
        "arms": {arm: made("videos", arm) for arm in arms},
        "groups": made("groups.csv"),
    }
    last = list(config.stages())[-1]
    found = {
        "prepare": Step(PrepareConfig, prepare, outline_prepare, model),
        "style": Step(TrainConfig, train, outline_training, model | dataset),
        "motion": Step(TrainConfig, train, outline_training, model | dataset | motion),
        "generate": Step(GenerateConfig, generate, outline_generation, model | dataset | adapters),
        "evaluate": Step(EvaluateConfig, evaluate, outline_evaluation, compared),
        "publish": Step(PublishConfig, publish, outline_publishing, {"adapter": f"{base}-{last}"}),
    }
    return {name: found[name] for name in config.steps()}


@records_its_end
def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """Prepare, style, motion, generate, evaluate, publish; continues at the first step that is not complete."""
    computable(config.evaluate, max(config.prepare.window.num_frames))
    run = Run.open(config)
    outputs: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    with ray_session(config):
        for name, step in steps(config).items():
            started = time.monotonic()
            log.info("=== %s", name)
            result = step.job(step_config(config, name, step))
            if name == "prepare":
                _check_windows(config)
            outputs |= {f"{name}/{key}": value for key, value in result["outputs"].items()}
            figures |= {f"{name}/{key}": value for key, value in result["figures"].items()}
            left_out |= {f"{name}/{key}": value for key, value in result.get("left_out", {}).items()}
            log.info("=== %s: done in %.0f s", name, time.monotonic() - started)
    outputs["report"] = write_report(config, run)
    return run.finish(outputs, figures, left_out)


def _check_windows(config: PipelineConfig) -> None:
    """Raise DatasetError, before anything is trained, where the windows to generate are too short to be evaluated."""
    step = step_config(config, "generate", steps(config)["generate"])
    assert isinstance(step, GenerateConfig)
    dataset = locate_dataset(Storage.open(config.storage), str(step.dataset))
    computable(config.evaluate, min(w.num_frames for w in held_out_windows(step, dataset)))


def step_config(config: PipelineConfig, name: str, step: Step) -> JobConfig:
    """The configuration of a step's own run."""
    common = {"name": f"{config.name}-{name}", "storage": config.storage, "ray": config.ray.model_dump()}
    settings = getattr(config, name).model_dump(mode="json")
    return parse_config(step.config, {**settings, **step.ties, **common}, where=f"step {name}")


def outline_pipeline(config: PipelineConfig) -> Outline:
    """What each step would do; of a step that reads what is not made yet, that it waits for it.

    Raises CinesynthError when the first step cannot start, and IdentityError when a name stands for another run.
    """
    computable(config.evaluate, max(config.prepare.window.num_frames))
    run = Run.at(config)
    if run.folder.exists("run.json"):
        run.check(config)
    work = []
    for place, (name, step) in enumerate(steps(config).items()):
        try:
            outline = step.outline(step_config(config, name, step))
        except IdentityError:
            raise
        except CinesynthError as e:
            if place == 0:
                raise
            work.append((name, f"after the steps before it (not yet: {e})"))
            continue
        work.append((name, outline.state))
        work += [("", f"{key}: {value}") for key, value in [*outline.inputs, *outline.work, *outline.resources[1:]]]
    state = "continues" if run.folder.exists("run.json") else "new"
    return Outline(f"pipeline {config.name}", state, [("model", config.model)], work, [cluster_of(config)])
