"""The whole path in one job: `python -m jobs.pipeline --config jobs/configs/nano/pipeline.yaml storage=...`."""

from typing import Any

from cinesynth.config import PipelineConfig
from jobs.entry import run_job


def job(config: PipelineConfig) -> dict[str, Any]:
    """Prepare, train, generate, evaluate and publish; a step that is complete is skipped."""
    from cinesynth.pipeline import run_pipeline

    return run_pipeline(config)


if __name__ == "__main__":
    run_job(PipelineConfig, job)
