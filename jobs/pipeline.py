"""Run the whole path in one job: `python -m jobs.pipeline --config jobs/configs/nano/pipeline.yaml storage=...`."""

from typing import Any

from cinesynth.config import PipelineConfig
from cinesynth.errors import ConfigError
from cinesynth.outline import Outline
from jobs.entry import run_job


def job(config: PipelineConfig) -> dict[str, Any]:
    """Prepare, train, generate, evaluate and publish; a step that is complete is skipped."""
    from cinesynth.pipeline import run_pipeline

    return run_pipeline(config)


def check_inputs(config: PipelineConfig) -> None:
    """Check what the first step reads, before Ray is needed."""
    from cinesynth.data.prepare import check_inputs
    from cinesynth.pictures import check_picture

    try:
        check_inputs(config.prepare, config.model)
    except ConfigError as e:
        raise ConfigError(f"prepare.{e}") from e
    for i, shot in enumerate(config.generate.shots):
        check_picture(shot.image, f"generate.shots.{i}.image")


def outline(config: PipelineConfig) -> Outline:
    """What the job would do."""
    from cinesynth.pipeline import outline_pipeline

    return outline_pipeline(config)


if __name__ == "__main__":
    run_job(PipelineConfig, job, outline, check=check_inputs)
