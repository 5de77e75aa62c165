"""Turn footage into a clips dataset, check a dataset, or take a source out of one.

python -m jobs.submit prepare --config jobs/configs/nano/prepare.yaml name=clips storage=...
python -m jobs.prepare --check /data/cinesynth/datasets/clips
python -m jobs.prepare --withdraw /footage/take-7.mov --dataset /data/cinesynth/datasets/clips
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cinesynth.config import PrepareConfig
from cinesynth.errors import CinesynthError, ConfigError
from cinesynth.outline import Outline
from cinesynth.storage import Storage, public_uri, split_options
from jobs.entry import run_job


def job(config: PrepareConfig) -> dict[str, Any]:
    """Cut, window, score, caption and encode footage into a clips dataset. Instead of a configuration,
    `--check DATASET` verifies one, and `--withdraw SOURCE --dataset DATASET` takes a source out of one."""
    from cinesynth.data.prepare import prepare
    from cinesynth.session import ray_session

    with ray_session(config):
        return prepare(config)


def check_inputs(config: PrepareConfig) -> None:
    """Check footage, packages and weights, before Ray is needed."""
    from cinesynth.data.prepare import check_inputs

    check_inputs(config, config.model)


def outline(config: PrepareConfig) -> Outline:
    """What the job would do."""
    from cinesynth.data.outline import outline_prepare

    return outline_prepare(config)


def check(location: str) -> int:
    """Check a dataset, and print what was checked and what is wrong. Returns the exit code."""
    from cinesynth.data.check import check_dataset

    counts, findings = check_dataset(Storage.open(location))
    for finding in findings:
        print(f"{finding.where}: {finding.what}")
    checked = ", ".join(f"{count} {name}" for name, count in counts.items())
    verdict = f"{len(findings)} problems" if findings else "all is well"
    print(f"{public_uri(location)}: checked {checked or 'nothing'}: {verdict}")
    return 1 if findings else 0


def withdraw(source: str, location: str) -> int:
    """Take a source out of a dataset, and list the adapters that were trained on it. Returns the exit code."""
    from cinesynth.data.withdraw import withdraw as withdraw_source

    path, options = split_options(location)
    storage, separator, name = path.rstrip("/").rpartition("/datasets/")
    if not separator:
        raise ConfigError(f"--dataset {public_uri(location)} is not of the form STORAGE/datasets/NAME")
    manifest, affected = withdraw_source(Storage.open(storage + options), name, source)
    print(f"withdrew {source}: {manifest['windows']} windows are left in {public_uri(location)}")
    print(
        f"{len(affected)} adapters were trained on it:" if affected else "no adapter of this storage was trained on it"
    )
    for adapter in affected:
        through = "" if adapter.through == "dataset" else f" (through its parent {adapter.through[:12]})"
        print(f"  {adapter.where}  {adapter.sha256[:12]}{through}")
    return 0


def main(argv: list[str]) -> None:
    """Run the command line: the job itself, `--check` or `--withdraw`."""
    if not {"--check", "--withdraw"} & {argument.partition("=")[0] for argument in argv}:
        run_job(PrepareConfig, job, outline, argv, check_inputs)
        return
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", metavar="DATASET", help="verify all that a dataset's manifest promises")
    what.add_argument("--withdraw", metavar="SOURCE", help="take a source out: its uri, or its sha256")
    parser.add_argument("--dataset", metavar="STORAGE/datasets/NAME", help="of --withdraw")
    given = parser.parse_args(argv)
    try:
        if given.check is not None:
            code = check(given.check)
        elif given.dataset is None:
            raise ConfigError("--withdraw needs --dataset STORAGE/datasets/NAME")
        else:
            code = withdraw(given.withdraw, given.dataset)
    except CinesynthError as e:
        print(f"error: {e}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
