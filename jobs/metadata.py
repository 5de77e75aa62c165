"""What a submitted job tells the Ray dashboard of itself: its name, run, storage and page.

`python -m jobs.metadata train --config FILE key=value ...` prints it as JSON, for what takes a job's metadata: `ray job
submit --metadata-json`, or the `metadata` of a RayJob. `python -m jobs.submit` passes it by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from cinesynth.config import (
    EvaluateConfig,
    GenerateConfig,
    JobConfig,
    PipelineConfig,
    PrepareConfig,
    PublishConfig,
    TrainConfig,
    TuneConfig,
)
from cinesynth.settings import load_config
from cinesynth.storage import public_uri
from cinesynth.studies.config import StudyConfig
from jobs.entry import user_errors_told
from jobs.study import overrides_of

_CONFIGS: tuple[type[JobConfig], ...] = (
    PrepareConfig,
    TrainConfig,
    GenerateConfig,
    EvaluateConfig,
    TuneConfig,
    StudyConfig,
    PublishConfig,
    PipelineConfig,
)
JOBS = {cls.kind: cls for cls in _CONFIGS}
"""Job (the NAME of `python -m jobs.NAME`) to its configuration."""


def read_config(job: str, arguments: Sequence[str]) -> JobConfig:
    """The configuration of `python -m jobs.JOB ARGUMENTS`. Raises ConfigError for a bad one."""
    words = overrides_of(list(arguments)) if job == "study" else list(arguments)
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{job}", add_help=False)
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_intermixed_args(words)
    config = load_config(JOBS[job], parsed.config, parsed.overrides)
    return config.of_run() if isinstance(config, StudyConfig) else config


def metadata_of(config: JobConfig) -> dict[str, str]:
    """Metadata of a job: texts, none of them secret. `job_name` is Ray's key for the column "Name"."""
    storage = public_uri(config.storage).rstrip("/")
    told = {"job_name": f"{config.kind} {config.name}", "run": config.name, "storage": storage}
    if config.kind == "prepare":
        return told | {"report": f"{storage}/datasets/{config.name}/index.html"}
    if config.kind == "publish":  # it writes no page
        return told
    return told | {"report": f"{storage}/runs/{config.name}/report.html"}


def main(argv: list[str]) -> None:
    """Print a job's metadata. Exit code 2: the configuration is bad, and the last line says why."""
    if not argv or argv[0] not in JOBS:
        sys.exit(f"usage: python -m jobs.metadata JOB [--config FILE] [key=value ...]; JOB is one of {', '.join(JOBS)}")
    with user_errors_told():
        print(json.dumps(metadata_of(read_config(argv[0], argv[1:]))))


if __name__ == "__main__":
    main(sys.argv[1:])
