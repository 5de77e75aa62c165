"""What a search takes at nano scale: `python -m benchmarks.tune [--trials 12] [--final-seeds 3]`.

A search of `jobs/configs/nano/tune.yaml` on scripted clips, the other trainings of the baseline counted as trials, with
the comparison at its end. The baseline has the highest rank here: within the noise a lower one is recommended, so that
there is something to compare. From the trials' records: how long a trial takes beside its optimiser steps, and what
for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cinesynth.config import TuneConfig
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.settings import load_config
from cinesynth.storage import Storage
from cluster.local import LocalHead, end_on_sigterm
from tune.records import COMPLETE, Records

TARGETS = {"search_minutes": 30.0}
CONFIGS = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "nano"
PARTS = {
    "process": lambda f: f["process_seconds"],
    "start": lambda f: f["start_seconds"],
    "end": lambda f: f["train_seconds"] - f["start_seconds"] - f["steps_seconds"],
    "generate": lambda f: f["generate_seconds"],
    "measure": lambda f: f["measure_seconds"],
    "wait_for_scorer": lambda f: f["score_seconds"] - f["generate_seconds"] - f["measure_seconds"],
}
"""What a trial takes beside its steps: a process of Tune's; the worker group up to its first step (processes, imports,
model, windows, held-out loss); the last held-out loss, checkpoint and page; videos; metrics; others' videos."""


def main(argv: list[str] | None = None) -> None:
    """Measure everything. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--final-seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=54)
    given = parser.parse_args(argv)
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="cinesynth-tune-") as folder, LocalHead(log=Path(folder) / "head") as head:
        footage, storage = Path(folder) / "footage", Path(folder) / "storage"
        write_scripted_clips(footage, given.clips, seed=0)
        paths = [f"storage={storage}", f"ray.address={head.address}"]
        _job("prepare", head, *paths, f"footage.0.path={footage}")
        seeds = load_config(TuneConfig, str(CONFIGS / "tune.yaml")).baseline_seeds
        search = [f"budget.trials={given.trials - seeds + 1}", f"final_seeds={given.final_seeds}"]
        search += ["train.lora.rank=64", "train.lora.alpha=64"]
        started = time.monotonic()
        _job("tune", head, *paths, *search)
        minutes = (time.monotonic() - started) / 60
        study = storage / "runs" / "nano-tune"
        records = Records(Storage.open(study)).read()
        compared = [path.stat().st_mtime for path in study.glob("final-*.json")]
    last = max(record.ended for record in records.values())
    figures: dict[str, Any] = {
        "trials": len(records),
        "final_trainings": 2 * given.final_seeds * len(compared),
        "final_minutes": round(sum(at - last for at in compared) / 60, 1),
        "search_minutes": round(minutes, 1),
        **trials(records),
    }
    for name, value in figures.items():
        print(f"  {name:40} {value}")
    passed = all(figures[name] <= bound for name, bound in TARGETS.items())
    targets = {name: f"<= {bound}" for name, bound in TARGETS.items()}
    print(json.dumps({"name": "tune", "figures": figures, "targets": targets, "pass": passed}))


def trials(records: dict[str, Any]) -> dict[str, float]:
    """Median seconds of a trial: its optimiser steps, and each part of what it takes beside them."""
    facts = [record.facts for record in records.values() if record.status == COMPLETE]
    parts = {name: statistics.median(part(f) for f in facts) for name, part in PARTS.items()}
    steps = statistics.median(f["steps_seconds"] for f in facts)
    return {
        "trial_steps_seconds": round(steps, 1),
        **{f"trial_{name}_seconds": round(value, 1) for name, value in parts.items()},
        "trial_seconds_beyond_steps": round(sum(parts.values()), 1),
    }


def _job(job: str, head: LocalHead, *options: str) -> None:
    command = [sys.executable, "-m", f"jobs.{job}", "--config", str(CONFIGS / f"{job}.yaml"), *options]
    print(f"jobs.{job} ...", flush=True)
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
