"""What a training takes beside the work itself: `python -m benchmarks.train [--steps 40] [--starts 3]`.

- A step of `TrainLoop` against a bare PyTorch loop of the same step (PEFT, AdamW, every block computed again), in turn
  on the same windows at the nano model's shape. The share is the median over pairs of steps.
- Seconds from the command to the end of the first step, by what the log shows: `python -m jobs.train` on a local head.
- Seconds that writing a checkpoint takes, and telling Ray Train of it in a worker, as a share of the steps between two
  of `jobs/configs/nano/style.yaml`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.conclusion import conclude
from benchmarks.gpu_model import random_transformer, random_windows
from benchmarks.gpu_train import our_loop, written_out_step
from cinesynth.config import TrainConfig
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.session import connect
from cinesynth.settings import load_config
from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.loop import TrainLoop
from cinesynth.train.state import Saved
from cinesynth.train.strategy import World
from cinesynth.train.worker import WorkerCheckpoints
from cluster.local import LocalHead, end_on_sigterm

TARGETS = {"step_over_bare_loop": ("<=", 1.03), "checkpoint_and_report_share": ("<=", 0.01)}
STYLE = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "nano" / "style.yaml"
MARKS = {
    "workers_started": "adapter on",
    "model_and_windows_there": "held-out loss",
    "first_step": "step 1/",
}
"""Phases of a start, each ended by the first line of the log that holds the text."""


def main(argv: list[str] | None = None) -> None:
    """Measure everything. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps, after 5")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--frames", type=int, default=33)
    given = parser.parse_args(argv)
    end_on_sigterm()
    torch.manual_seed(0)
    windows = random_windows("nano", given.frames, 64, 96, count=8)
    loop = our_loop(random_transformer("nano", torch.float32, "cpu"), windows, "cpu", {})
    figures: dict[str, Any] = steps(loop, windows, given.steps)
    with (
        tempfile.TemporaryDirectory(prefix="cinesynth-train-") as folder,
        LocalHead(log=Path(folder) / "head.log") as head,
    ):
        figures |= checkpoints(loop, Path(folder), head)
        between = load_config(TrainConfig, str(STYLE)).checkpoint_every * figures["step_seconds"]
        taken = figures["checkpoint_seconds"] + figures["report_seconds"]
        figures["checkpoint_and_report_share"] = round(taken / between, 5)
        if given.starts:
            figures |= starts(Path(folder), given.starts, head)
    conclude("train", figures, TARGETS)


def steps(loop: TrainLoop, windows: list[dict[str, torch.Tensor]], count: int) -> dict[str, float]:
    """Seconds of a step, ours and bare, and the median of their ratio."""
    both: dict[str, Callable[[int], Any]] = {
        "ours": loop.train_step,
        "bare": written_out_step(random_transformer("nano", torch.float32, "cpu"), windows, "cpu"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for number in range(5 + count):
        order = list(both) if number % 2 else list(reversed(both))
        for name in order:
            started = time.perf_counter()
            both[name](number)
            seconds[name].append(time.perf_counter() - started)
    ours, bare = (values[5:] for values in seconds.values())
    return {
        "step_seconds": round(statistics.median(ours), 4),
        "bare_step_seconds": round(statistics.median(bare), 4),
        "step_over_bare_loop": round(statistics.median(a / b for a, b in zip(ours, bare, strict=True)), 4),
    }


def checkpoints(loop: TrainLoop, folder: Path, head: LocalHead) -> dict[str, float]:
    """Seconds of taking and writing a state, and those that a worker of Ray Train takes to tell of it."""
    store, seconds = StoredCheckpoints(Storage.open(folder / "checkpoints")), []
    for number in range(9):
        started = time.perf_counter()
        saved = Saved(loop.strategy.state(), number + 1, {})
        store.save(saved)
        seconds.append(time.perf_counter() - started)
    store.flush()
    return {
        "checkpoint_megabytes": round(sum(v.nbytes for v in saved.tensors.values()) / 1e6, 2),
        "checkpoint_seconds": round(statistics.median(seconds), 4),
        "report_seconds": round(statistics.median(_reports(folder, head)), 4),
    }


def _reports(folder: Path, head: LocalHead) -> list[float]:
    """Seconds of each report of a worker, of which Ray Train takes one every two seconds."""
    os.environ |= {k: v for k, v in head.environment.items() if k.startswith("RAY_")}
    import ray  # reads the environment
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    connect(head.address, "head", log_to_driver=False)
    try:
        TorchTrainer(
            _report,
            train_loop_config={"folder": str(folder / "reports")},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="reports", storage_path=str(folder / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    return list(Storage.open(folder / "reports").read_json("seconds.json"))


def _report(task: dict[str, str]) -> None:
    """A worker that saves states of one number, which are written beside it, and writes how long each call took."""
    folder, seconds = Storage.open(task["folder"]), []
    store = WorkerCheckpoints(folder, World(), 2, tuple, None)
    for step in range(1, 10):
        time.sleep(3)
        started = time.perf_counter()
        store.save(Saved({"weight": torch.zeros(1)}, step, {"loss": 0.0}))
        seconds.append(time.perf_counter() - started)
    store.flush()
    folder.write_json("seconds.json", seconds)


def starts(folder: Path, count: int, head: LocalHead) -> dict[str, float]:
    """Median seconds of each phase of `python -m jobs.train`, from the command to the end of the first step."""
    write_scripted_clips(folder / "footage", 8, seed=0)
    storage = f"storage={folder / 'storage'}"
    footage = f"footage=[{{path: {folder / 'footage'}}}]"
    small = ["window={num_frames: 33, sizes: 96x64, max_per_shot: 1}", "split={val: 0.5, test: 0.0}"]
    prepared = [sys.executable, "-m", "jobs.prepare", "name=clips", storage, footage, *small]
    subprocess.run(prepared, check=True, capture_output=True, env=head.environment)
    phases: dict[str, list[float]] = {name: [] for name in MARKS}
    for number in range(count):
        command = [sys.executable, "-m", "jobs.train", f"name=start-{number}", storage, "dataset=clips"]
        command += ["optimizer={steps: 1, lr: 1e-3, batch_size: 2}", "log_every=1", "lora={rank: 32, alpha: 32}"]
        begun = time.monotonic()
        job = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=head.environment
        )
        assert job.stdout is not None
        awaited = iter(MARKS.items())
        phase, mark = next(awaited)
        for line in job.stdout:
            if mark and mark in line:
                phases[phase].append(time.monotonic() - begun)
                begun = time.monotonic()
                phase, mark = next(awaited, ("", ""))
        if job.wait() or mark:
            raise RuntimeError(
                f"{' '.join(command)} ended with exit code {job.returncode}, before its log had {mark!r}"
            )
    medians = {f"start_{name}_seconds": round(statistics.median(values), 2) for name, values in phases.items()}
    return {**medians, "start_seconds": round(sum(medians.values()), 2)}


if __name__ == "__main__":
    main()
