"""Compare folders of videos with real ones: `python -m jobs.evaluate --real DIR --fake DIR`, or `--config`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cinesynth.config import EvaluateConfig
from cinesynth.outline import Outline
from jobs.entry import run_job


def job(config: EvaluateConfig) -> dict[str, Any]:
    """Compare folders of videos with real ones by the metrics of the catalogue."""
    from cinesynth.metrics.evaluate import evaluate

    return evaluate(config)


def outline(config: EvaluateConfig) -> Outline:
    """What the job would do."""
    from cinesynth.metrics.outline import outline_evaluation

    return outline_evaluation(config)


def overrides_of(argv: list[str]) -> list[str]:
    """The command line with `--real`, `--fake`, `--require`, `--groups`, `--name` and `--storage` made into overrides.

    `--fake` is a folder or NAME=FOLDER, and is given once for each arm. Without `--name`, the run is named after its
    arguments and files.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--real")
    parser.add_argument("--fake", action="append", default=[])
    for option in ("groups", "name", "storage"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--require", action="store_true")
    given, rest = parser.parse_known_args(argv)
    rest += ["require=true"] * given.require
    pairs = {key: getattr(given, key) for key in ("real", "groups", "name", "storage") if getattr(given, key)}
    pairs |= {f"arms.{name}": folder for name, folder in _arms(given.fake)}
    if given.real and not given.name and not any(item.startswith("name=") for item in rest):
        pairs["name"] = f"evaluate-{_fingerprint(argv, [given.real, *(f for _, f in _arms(given.fake))])}"
    # Values are quoted as in YAML, so that a folder's name is never read as a number or a list.
    return rest + [f"{key}={json.dumps(value)}" for key, value in pairs.items()]


def _arms(fakes: list[str]) -> list[tuple[str, str]]:
    arms = []
    for i, fake in enumerate(fakes):
        name, separator, folder = fake.partition("=")
        if not separator or Path(fake).is_dir():
            name, folder = ("fake" if i == 0 else f"fake{i + 1}"), fake
        arms.append((name, folder))
    return arms


def _fingerprint(argv: list[str], folders: list[str]) -> str:
    """Eight digits that change with the arguments, and when a file in the folders is replaced."""
    files = [path for folder in folders if Path(folder).is_dir() for path in sorted(Path(folder).rglob("*"))]
    seen = [argv, [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()]]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:8]


if __name__ == "__main__":
    run_job(EvaluateConfig, job, outline, overrides_of(sys.argv[1:]))
