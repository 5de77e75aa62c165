"""Publish an adapter under `name@version`: `python -m jobs.publish name=RUN adapter=TRAIN-RUN adapter_name=NAME`."""

from typing import Any

from cinesynth.config import PublishConfig
from cinesynth.outline import Outline
from jobs.entry import run_job


def job(config: PublishConfig) -> dict[str, Any]:
    """Publish an adapter in the registry under name@version."""
    from cinesynth.publish import publish

    return publish(config)


def outline(config: PublishConfig) -> Outline:
    """What the job would do."""
    from cinesynth.publish import outline_publishing

    return outline_publishing(config)


if __name__ == "__main__":
    run_job(PublishConfig, job, outline)
