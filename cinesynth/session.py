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
        # Workers say what a reader of the job's log needs; Ray's own state transitions are in its log files.
        quiet = ray.LoggingConfig(encoding="TEXT", log_level="WARNING")
        root = logging.getLogger()
        level, handlers = root.level, list(root.handlers)
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING, logging_config=quiet)
        # The configuration reaches the driver too: without this, the job's own progress lines would go.
        root.setLevel(level)
        root.handlers[:] = handlers
    try:
        yield
    finally:
        if not already:
            ray.shutdown()
