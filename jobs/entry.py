"""What every job's command line does: read the configuration, check it before Ray starts, run, and say what came out.

Exit code 0: done. 2: the user can fix what is wrong, and the last line says it. 1: anything else, with a traceback.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cinesynth.config import JobConfig
from cinesynth.errors import CinesynthError, ConfigError
from cinesynth.settings import load_config

Config = TypeVar("Config", bound=JobConfig)


def run_job(
    cls: type[Config],
    job: Callable[[Config], dict[str, Any]],
    argv: list[str] | None = None,
    check: Callable[[Config], None] | None = None,
) -> None:
    """Run `job` with the configuration on the command line. Ends the process with an exit code.

    `job` and `check` import what they need when they are called, which takes seconds: a bad configuration is refused
    before that.

    Args:
        cls: the job's configuration class.
        job: what to run; returns the run's result.
        argv: the command line; default: that of the process.
        check: looks at the inputs that the configuration names.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{cls.kind}",
        description=(job.__doc__ or "").strip(),
        epilog="Overrides: key=value, nested with dots, e.g. optimizer.lr=1e-4",
    )
    parser.add_argument("--config", help="YAML file; the shipped ones are under jobs/configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    # These libraries log so much that the job's own lines get lost.
    for chatty in ("httpx", "httpcore", "urllib3", "PIL", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        config = load_config(cls, arguments.config, arguments.overrides)
        check_storage(config.storage)
        config.check_inputs()
        if check is not None:
            check(config)
        result = job(config)
    except CinesynthError as e:
        sys.stdout.flush()
        print(f"error: {e}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    for key, value in sorted(result["figures"].items()):
        print(f"  {key}: {value}")
    for key, value in sorted(result["outputs"].items()):
        print(f"  {key}: {value}")
    print(f"{cls.kind} {config.name}: complete", flush=True)


def check_storage(storage: str) -> None:
    """Raise ConfigError for a relative folder inside a submitted job, as whatever the job writes there is lost.

    Ray unpacks a job's working directory below its session's `runtime_resources`, and removes it after the job.
    """
    relative = "://" not in storage and not Path(storage).expanduser().is_absolute()
    if relative and "runtime_resources" in Path.cwd().parts:
        raise ConfigError(
            f"storage: {storage!r} is relative to the copy of the working directory that Ray made for this job and "
            "removes after it; give an absolute path that every node sees, or s3://bucket/prefix"
        )
