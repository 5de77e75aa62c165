"""What every job's command line does: read the configuration, check it before Ray starts, run, and say what came out.

Exit code 0: done. 2: the user can fix what is wrong, and the last line says it. 130 and 143: stopped by Ctrl-C or
SIGTERM. 1: anything else, with a traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cinesynth.config import JobConfig
from cinesynth.errors import user_error
from cinesynth.outline import Outline
from cinesynth.settings import load_config
from cinesynth.settings_help import help_text
from cinesynth.stopping import raise_on_signals
from cinesynth.storage import check_lasting

Config = TypeVar("Config", bound=JobConfig)


def run_job(
    cls: type[Config],
    job: Callable[[Config], dict[str, Any]],
    outline: Callable[[Config], Outline],
    argv: list[str] | None = None,
    check: Callable[[Config], None] | None = None,
) -> dict[str, Any] | None:
    """Run `job` with the configuration on the command line, and return its result; None of `dry_run`. Whatever goes
    wrong ends the process with an exit code.

    `job`, `outline` and `check` import what they need when they are called, which takes seconds: a bad configuration
    is refused before that.

    Args:
        cls: the job's configuration class.
        job: what to run; returns the run's result.
        outline: says what `job` would do, for `dry_run=true`.
        argv: the command line; default: that of the process.
        check: looks at the inputs that the configuration names.
    """
    arguments = _parser(cls, job.__doc__ or "").parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    # These libraries log so much that the job's own lines get lost.
    for chatty in ("httpx", "httpcore", "urllib3", "PIL", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    raise_on_signals()
    with user_errors_told():
        try:
            config = load_config(cls, arguments.config, arguments.overrides)
            check_lasting(config.storage)
            config.check_inputs()
            if check is not None:
                check(config)
            if config.dry_run:
                print(f"{outline(config).text()}\ndry run: nothing was started or written", flush=True)
                return None
            result = job(config)
        except (KeyboardInterrupt, SystemExit) as e:
            _say("stopped; the same command goes on from what is stored")
            logging.shutdown()
            os._exit(_code_of(e))  # threads of Ray that still wait would abort the interpreter's orderly end
    _print_summary(result)
    print(f"{cls.kind} {config.name}: {result.get('status', 'complete')}", flush=True)
    return result


@contextmanager
def user_errors_told() -> Iterator[None]:
    """End the process with code 2, and what is wrong as the last line, for an error that the user can fix."""
    try:
        yield
    except Exception as e:
        if (found := user_error(e)) is None:
            raise
        _say(f"error: {found}")
        raise SystemExit(2) from None


def _parser(cls: type[JobConfig], description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{cls.kind}",
        description=" ".join(description.split()),
        epilog=f"key=value, nested with dots, e.g. ray.address=127.0.0.1:6379\n\n{help_text(cls)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="YAML file; the shipped ones are under jobs/configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def _say(message: str) -> None:
    """A job's last line."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)


def _code_of(stop: BaseException) -> int:
    """128 and the signal's number. Ray Train's own Ctrl-C handler exits with 0."""
    number = stop.code if isinstance(stop, SystemExit) else signal.SIGINT
    return 128 + (number if isinstance(number, int) and number else signal.SIGINT)


def _print_summary(result: dict[str, Any]) -> None:
    for key, value in sorted(result["figures"].items()):
        print(f"  {key}: {f'{value:.6g}' if isinstance(value, float) else value}")
    for key, value in sorted(result["outputs"].items()):
        print(f"  {key}: {value}")
    if result.get("left_out"):  # runs of before have none
        print("  left out:")
    for reason, told in result.get("left_out", {}).items():
        print(f"    {reason}: {told}")
