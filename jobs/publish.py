"""Publish an adapter under `name@version`: `python -m jobs.publish name=RUN adapter=TRAIN-RUN adapter_name=NAME`."""

from cinesynth.config import PublishConfig
from cinesynth.publish import publish
from jobs.entry import run_job

if __name__ == "__main__":
    run_job(PublishConfig, publish)
