"""The whole path in one job: `python -m jobs.pipeline --config jobs/configs/nano/pipeline.yaml`."""

from cinesynth.config import PipelineConfig
from cinesynth.pipeline import run_pipeline
from jobs.entry import run_job

if __name__ == "__main__":
    run_job(PipelineConfig, run_pipeline)
