"""Submit a job to a Ray cluster under its own name: `python -m jobs.submit train --config FILE key=value ...`.

It is `ray job submit`, whose command it prints, with what one would have to write out: the working directory, a
submission id that says what it is, and the metadata that the dashboard shows. A bad configuration is refused here,
before anything is uploaded.

    python -m jobs.submit [options of `ray job submit`] JOB [--config FILE] [key=value ...]
    python -m jobs.submit --print JOB ...       the command alone, for a script or another machine

Exit code: that of the job itself (`jobs/entry.py`), of which `ray job submit` makes 1, or 0 where the job was stopped.
130: Ctrl-C, after which the job goes on.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cinesynth.config import JobConfig
from cinesynth.errors import ConfigError
from jobs.entry import user_errors_told
from jobs.metadata import JOBS, metadata_of, read_config

_PRINT = "--print"
STOPPED = 143
"""Exit code for a job that `ray job stop` ended, by SIGTERM."""


def command_of(options: Sequence[str], job: str, arguments: Sequence[str], now: datetime) -> list[str]:
    """The words of `ray job submit` for a job.

    Args:
        options: more of `ray job submit`; what they set is not set here.
        job: a key of `JOBS`.
        arguments: of the job's command line.
        now: a part of the submission id.

    Raises ConfigError where the configuration is bad, its storage would be lost, or this is not the repository.
    """
    config = read_config(job, arguments)
    _check_storage(config)
    ours = {
        "--working-dir": _working_dir,
        "--submission-id": lambda: f"{job}-{config.name}-{now:%Y%m%d-%H%M%S}",
        "--metadata-json": lambda: json.dumps(metadata_of(config)),
    }
    given = {option.partition("=")[0] for option in options}
    if "--runtime-env" in given or "--runtime-env-json" in given:  # either may hold the working directory
        given.add("--working-dir")
    words = [word for option, value in ours.items() if option not in given for word in (option, value())]
    return ["ray", "job", "submit", *options, *words, "--", "python", "-m", f"jobs.{job}", *arguments]


def _check_storage(config: JobConfig) -> None:
    if "://" not in config.storage and not Path(config.storage).expanduser().is_absolute():
        raise ConfigError(
            f"storage: {config.storage!r} is relative to the copy of the working directory that Ray makes for the job "
            "and removes after it; give an absolute path that every node sees, or s3://bucket/prefix"
        )


def _working_dir() -> str:
    if not Path("jobs/entry.py").is_file():
        raise ConfigError(
            f"{Path.cwd()} is not the root of the repository, which is the job's working directory; go there, or give "
            "--working-dir before the job's name"
        )
    return "."


def main(argv: list[str]) -> None:
    """Submit a job, follow its log and end with its exit code."""
    place = next((place for place, word in enumerate(argv) if word in JOBS), None)
    if place is None:
        sys.exit(f"usage: {__doc__.split('    ')[1].strip()}\nJOB is one of {', '.join(JOBS)}")
    options = [word for word in argv[:place] if word != _PRINT]
    with user_errors_told():
        command = command_of(options, argv[place], argv[place + 1 :], datetime.now(UTC))
    print(shlex.join(command), flush=True)
    if _PRINT not in argv[:place]:
        raise SystemExit(_submit(command))


def _submit(command: list[str]) -> int:
    submission = _value(command, "--submission-id")
    try:
        code = subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command[1:]]).returncode
    except KeyboardInterrupt:
        print(f"the job goes on: `ray job logs -f {submission}`, `ray job stop {submission}`", file=sys.stderr)
        return 130
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        job = JobSubmissionClient(_value(command, "--address") or None).get_job_info(submission)
    except ConnectionError:
        print(
            "the cluster does not answer. A job that had begun goes on if the head does: see `ray job status "
            f"{submission}`; on a new head, the same command goes on from what is stored",
            file=sys.stderr,
        )
        return code or 1
    except Exception:  # it was never submitted, and `ray job submit` has said why
        return code
    return STOPPED if job.status == JobStatus.STOPPED else job.driver_exit_code or code


def _value(command: Sequence[str], option: str) -> str:
    """An option's value, as `--option value` or `--option=value`; "" where it is not given."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


if __name__ == "__main__":
    main(sys.argv[1:])
