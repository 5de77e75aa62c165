"""Footage to a clips dataset.

ray job submit --working-dir . -- python -m jobs.prepare --config jobs/configs/nano/prepare.yaml name=clips storage=...
"""

from typing import Any

from cinesynth.config import PrepareConfig
from jobs.entry import run_job


def job(config: PrepareConfig) -> dict[str, Any]:
    """Probe, cut, window, caption and encode footage into a clips dataset."""
    from cinesynth.data.prepare import prepare
    from cinesynth.session import ray_session

    with ray_session(config):
        return prepare(config)


if __name__ == "__main__":
    run_job(PrepareConfig, job)
