"""Footage to a clips dataset.

ray job submit --working-dir . -- python -m jobs.prepare --config jobs/configs/nano/prepare.yaml name=clips
"""

from __future__ import annotations

from typing import Any

from cinesynth.config import PrepareConfig
from cinesynth.data.prepare import prepare
from cinesynth.session import ray_session
from jobs.entry import run_job


def job(config: PrepareConfig) -> dict[str, Any]:
    """Probe, cut, window, caption and encode footage into a clips dataset."""
    with ray_session(config):
        return prepare(config)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    run_job(PrepareConfig, job, argv)


if __name__ == "__main__":
    main()
