"""The page docs/configuration.md, made from the configuration models: `python -m docs.configuration [--check]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cinesynth.config import (
    EvaluateConfig,
    GenerateConfig,
    PipelineConfig,
    PrepareConfig,
    PublishConfig,
    TrainConfig,
    TuneConfig,
)
from cinesynth.settings import Settings
from cinesynth.settings_help import markdown
from cinesynth.studies.config import StudyConfig
from cinesynth.studies.review.config import ReviewConfig
from serve.config import ServeConfig

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """\
# Configuration

Made from the code by `python -m docs.configuration`; `make lint` fails where it is out of date.

A job takes `--config FILE` (YAML) and `key=value` overrides: nested with dots (`optimizer.lr=1e-4`), into lists by
place (`footage.0.path=/films`), groups and lists in YAML's short form (`'lora={rank: 4}'`: a group keeps what is not
named, and `{}` clears it). A field of text takes it as it is written: `prompt=yes`, `name=42`, `${HOME}` are text.
`null` is none. `--help` of a job lists its fields.

A field marked `·` is runtime: it may change whenever a run is continued. Any other is identity, and another value
needs another run name. Files and folders are runtime where their content is hashed. `dry_run=true` prints what a job
would do, and ends before Ray starts.
"""
JOBS: dict[str, type[Settings]] = {
    "jobs.prepare": PrepareConfig,
    "jobs.train": TrainConfig,
    "jobs.tune": TuneConfig,
    "jobs.generate": GenerateConfig,
    "jobs.evaluate": EvaluateConfig,
    "jobs.publish": PublishConfig,
    "jobs.study": StudyConfig,
    "jobs.pipeline": PipelineConfig,
    "cinesynth.studies.review": ReviewConfig,
    "serve.run": ServeConfig,
}
SERVICE = """\
A service is no run: deploying again takes every change.

"""
PIPELINE = """\
`name`, `storage`, `ray`, `dry_run` and `model`, and one group a step (`prepare`, `style`, `motion`, `generate`,
`evaluate`, `publish`) with the fields of its job above; what ties a step to the one before is filled in. Without
`motion` there is one stage, and the arms are base and adapter; with it they are base, style and style-motion.
"""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for name, cls in JOBS.items():
        text = markdown(cls) + "\n"
        if cls is PipelineConfig:  # its steps are the jobs above
            text = PIPELINE
        elif cls is ServeConfig:
            text = SERVICE + text
        parts.append(f"## {name}\n\n{text}")
    return "\n".join(parts)


def main() -> None:
    """Write the page, or compare it; exit code 1 where it is out of date."""
    parser = argparse.ArgumentParser(prog="python -m docs.configuration", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.is_file() or PAGE.read_text() != page():
        sys.exit(f"error: {PAGE} is out of date; run `python -m docs.configuration`")


if __name__ == "__main__":
    main()
