"""Connecting a job's driver to the Ray cluster that its configuration names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cinesynth.config import JobConfig
from cinesynth.errors import ConfigError


@contextmanager
def ray_session(config: JobConfig) -> Iterator[None]:
    """Connect to the cluster that the configuration names, for as long as the block runs.

    Raises ConfigError when no address is known: a fresh head is never started behind the user's back.
    """
    import ray

    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "ray.address: no Ray cluster is known; submit with `ray job submit --working-dir . -- python -m "
            f"jobs.{config.kind} ...`, or set ray.address=HOST:PORT, or ray.address=local for a private one"
        )
    already = ray.is_initialized()
    if not already:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    try:
        yield
    finally:
        if not already:
            ray.shutdown()
