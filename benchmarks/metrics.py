"""What an evaluation takes beside its networks: `python -m benchmarks.metrics [--rounds 5] [--workers 2]`.

- Extraction against the larger of its parts: decoding alone, and the networks alone on frames that are there, in turn
  on the same batches. Networks have one thread, as a worker of one CPU has. Ideal is 1: a thread decodes meanwhile.
- The check of all videos, anew and from what is kept; and a whole evaluation, anew and from what is kept.
- Ray workers, decoding included: seconds of the same batches with one and with several.
- The trace of the Frechet distance against `scipy.linalg.sqrtm`, N = 2 d samples, and the whole distance from features.
- KVD with its jackknife intervals, of two arms and their difference.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm

from benchmarks.conclusion import conclude
from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.metrics import catalogue
from cinesynth.metrics.distributed import RayExecutor
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.extraction import batches_of, wanted_rows
from cinesynth.metrics.features import Batch, LocalExecutor, Networks, Reader
from cinesynth.metrics.frechet import frechet_distance, root_trace
from cinesynth.metrics.kept import KeptWork
from cinesynth.metrics.metric import Network, Sample
from cinesynth.metrics.videos import open_sets
from cinesynth.session import ray_session
from cinesynth.storage import Storage
from cluster.local import LocalHead, end_on_sigterm

TARGETS = {
    "extraction_over_larger_part": ("<=", 1.1),
    "frechet_trace_speed_up": (">=", 5.0),
    "frechet_difference": ("<=", 1e-6),
    "kvd_seconds": ("<=", 20.0),
}


def main(argv: list[str] | None = None) -> None:
    """Measure everything. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=8, help="of each of two sets")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", default="384x256")
    parser.add_argument("--metrics", nargs="+", default=["kvd", "fvd", "lpips"])
    parser.add_argument("--workers", type=int, default=2, help="Ray workers to compare with one; 0: none")
    parser.add_argument(
        "--dims", type=int, nargs="+", default=[400, 2048], help="of features, for the Frechet distance"
    )
    parser.add_argument("--kvd", type=int, default=2048, help="videos of each of three sets")
    given = parser.parse_args(argv)
    end_on_sigterm()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    settings = EvaluateSettings(metrics=given.metrics)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cinesynth-metrics-") as scratch:
        folders = write_sets(Path(scratch), given.videos, given.frames, given.size)
        batches, networks = work(folders, settings)
        figures |= extraction(batches, networks, settings, given.rounds)
        figures |= kept_work(folders, settings, Path(scratch) / "storage")
        if given.workers:
            figures |= workers(batches, networks, given.metrics, given.workers, Path(scratch) / "head.log")
    figures |= frechet(given.dims, given.rounds)
    figures |= kvd(given.kvd)
    conclude("metrics", figures, TARGETS)


def write_sets(folder: Path, count: int, frames: int, size: str) -> dict[str, Path]:
    """Two folders of H.264 videos of one size (`WxH`): moving waves, those of the second with grain."""
    width, height = map(int, size.split("x"))
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        rng = np.random.default_rng(i)
        (a, b), speed = rng.uniform(0.02, 0.2, 2), rng.uniform(0.2, 0.6)
        waves = np.stack([np.sin(a * x + b * y + speed * t) for t in range(frames)])[..., None] * rng.uniform(40, 90, 3)
        for name, grain in (("real", 2), ("base", 12)):
            video = (127 + waves + grain * rng.normal(size=waves.shape)).clip(0, 255).astype(np.uint8)
            write_video(folder / name / f"w{i:03d}.mp4", video)
    return {name: folder / name for name in ("real", "base")}


def work(folders: dict[str, Path], settings: EvaluateSettings) -> tuple[list[Batch], list[Network]]:
    """The batches of a whole evaluation, and its networks."""
    sets = open_sets(folders, None)
    networks = list({m.network.name: m.network for m in catalogue.chosen(settings.metrics)}.values())
    wanted = [wanted_rows(network, sets, {}, settings, None) for network in networks]
    return batches_of(sets, wanted, {}, settings.batch_size), networks


def extraction(
    batches: Sequence[Batch], networks: Sequence[Network], settings: EvaluateSettings, rounds: int
) -> dict[str, float]:
    """Median seconds of decoding, of the networks, and of both as an evaluation does them."""
    models = Networks(networks, settings)
    local = LocalExecutor(models, settings)
    reader = Reader()
    decoded = [reader.read(batch) for batch in batches]

    def decode() -> None:
        again = Reader()
        for batch in batches:
            again.read(batch)

    def run_networks() -> None:
        for batch, videos in zip(batches, decoded, strict=True):
            models.run_all(batch.calls, videos)

    run_networks()  # the first call of a network sets up its kernels
    list(local.run(batches))
    parts = {"decode": decode, "networks": run_networks, "extraction": lambda: list(local.run(batches))}
    seconds = in_turn(parts, rounds)
    ratios = [
        both / max(alone)
        for both, *alone in zip(seconds["extraction"], seconds["decode"], seconds["networks"], strict=True)
    ]
    medians = {f"{name}_seconds": round(statistics.median(values), 3) for name, values in seconds.items()}
    return {**medians, "extraction_over_larger_part": round(statistics.median(ratios), 3)}


def kept_work(folders: dict[str, Path], settings: EvaluateSettings, storage: Path) -> dict[str, float]:
    """Seconds of the check of all videos and of an evaluation, first and again."""
    kept, arms = KeptWork(Storage.open(storage)), {"base": folders["base"]}
    found = {}
    for name in ("anew", "kept"):
        found[f"check_seconds_{name}"] = seconds_of(lambda: open_sets(folders, None, kept))
    for name in ("anew", "kept"):
        found[f"evaluation_seconds_{name}"] = seconds_of(
            lambda: compare(folders["real"], arms, settings=settings, kept=kept)
        )
    return {name: round(value, 3) for name, value in found.items()}


def workers(
    batches: Sequence[Batch], networks: Sequence[Network], metrics: list[str], most: int, log: Path
) -> dict[str, float]:
    """Seconds of all batches with one Ray worker of one CPU, and with several; the actors are there already."""
    found = {}
    with LocalHead(log=log) as head:
        os.environ |= head.variables
        for count in (1, most):
            values: dict[str, Any] = {"name": "workers", "real": "real", "arms": {"base": "base"}, "metrics": metrics}
            config = EvaluateConfig.model_validate({**values, "workers": count, "ray": {"address": head.address}})
            with ray_session(config):
                executor = RayExecutor(Networks(networks, config), config)
                list(executor.run(batches[: 4 * count]))
                found[count] = seconds_of(lambda executor=executor: list(executor.run(batches)))
                executor.close()
    return {
        **{f"workers_{count}_seconds": round(value, 2) for count, value in found.items()},
        "workers_speed_up": round(found[1] / found[most], 2),
    }


def frechet(dims: Sequence[int], rounds: int) -> dict[str, float]:
    """How much faster than by `sqrtm`: the trace from two covariances, and the distance from features."""
    found: dict[str, float] = {}
    for d in dims:
        rng = np.random.default_rng(d)
        scale = 1 / np.sqrt(1 + np.arange(d))
        real, fake = rng.normal(size=(2 * d, d)) * scale, (rng.normal(size=(2 * d, d)) + 0.1) * scale
        covariances = [np.cov(x, rowvar=False, ddof=0) for x in (real, fake)]
        parts = {
            "ours": lambda of=covariances: root_trace(*of),
            "sqrtm": lambda of=covariances: trace_by_sqrtm(*of),
            "distance": lambda a=real, b=fake: frechet_distance(a, b),
            "distance_by_sqrtm": lambda a=real, b=fake: distance_by_sqrtm(a, b),
        }
        seconds = {name: statistics.median(v) for name, v in in_turn(parts, 1 if d > 1000 else 3 * rounds).items()}
        found[f"frechet_trace_seconds_d{d}"] = round(seconds["ours"], 4)
        found[f"frechet_sqrtm_seconds_d{d}"] = round(seconds["sqrtm"], 4)
        found[f"frechet_trace_speed_up_d{d}"] = round(seconds["sqrtm"] / seconds["ours"], 2)
        found[f"frechet_distance_speed_up_d{d}"] = round(seconds["distance_by_sqrtm"] / seconds["distance"], 2)
        expected = distance_by_sqrtm(real, fake)
        found[f"frechet_difference_d{d}"] = abs(frechet_distance(real, fake) - expected) / expected
    return {
        **found,
        "frechet_trace_speed_up": min(found[f"frechet_trace_speed_up_d{d}"] for d in dims),
        "frechet_difference": max(found[f"frechet_difference_d{d}"] for d in dims),
    }


def trace_by_sqrtm(real: np.ndarray, fake: np.ndarray) -> float:
    """As published implementations have it."""
    return float(np.trace(sqrtm(real @ fake)).real)


def distance_by_sqrtm(real: np.ndarray, fake: np.ndarray) -> float:
    """The distance as published implementations have it, with ddof 0."""
    shift, covariances = real.mean(axis=0) - fake.mean(axis=0), [np.cov(x, rowvar=False, ddof=0) for x in (real, fake)]
    return float(shift @ shift + sum(np.trace(c) for c in covariances) - 2 * trace_by_sqrtm(*covariances))


def kvd(count: int) -> dict[str, float]:
    """Seconds of KVD of two arms with their intervals and that of their difference; each video is a group."""
    metric, rng = catalogue.find("kvd"), np.random.default_rng(0)
    groups = {f"w{i}": f"w{i}" for i in range(count)}
    rows = {name: rng.normal(size=(count, metric.network.d)) for name in ("real", "base", "adapter")}
    samples = [Sample(name, dict(zip(groups, of, strict=True)), groups) for name, of in rows.items()]
    return {"kvd_seconds": round(seconds_of(lambda: metric.measure(metric, samples[0], samples[1:])), 2)}


def in_turn(parts: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each part, every round in another order."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds):
        for name in list(parts) if number % 2 else reversed(parts):
            seconds[name].append(seconds_of(parts[name]))
    return seconds


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
