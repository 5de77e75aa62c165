"""What serving costs beside the model, with nano on this machine: `python -m benchmarks.serve [--soak 200]`.

- Overhead of a job with others queued behind it: the time between two videos of one engine, less what its group says of
  encoding, denoising, decoding and writing.
- Status polls: CPU time of the service's processes a poll; CPU time of denoising with 20 polls a second over that
  without, and beside a process that only takes as much of a core as the polls: what the cores do to each other.
- From the first video at no engine to its first step, by part.
- With `--soak N`: N videos, and N more while processes are killed: ranks, coordinators, Dispatcher, Ingress.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from cinesynth.pictures import png_bytes
from cinesynth.session import connect
from cinesynth.settings import parse_config
from cinesynth.storage import sha256_file
from cluster.local import LocalHead, end_on_sigterm, free_ports
from serve.auth import create_key
from serve.config import ServeConfig
from serve.dispatch import open_store
from serve.jobs import Job, JobStore

TARGETS = {"overhead_ms_p50": 50.0, "overhead_ms_p99": 200.0, "steps_slowed_by_polls": 1.02}
SOAK_TARGETS = {"soak_completed": 1.0, "soak_killed_completed": 0.95, "soak_wrong": 0}
IDLE_S = 4.0
POLLS_A_SECOND = 20


class Service:
    """The service on a head of its own.

    Args:
        folder: for its storage.
        engine: fields of its settings.
    """

    def __init__(self, folder: Path, **engine: Any) -> None:
        from serve.run import deploy

        values = {
            "model": "nano",
            "storage": str(folder / "storage"),
            "port": free_ports(1)[0],
            "sizes": [[64, 96]],
            "defaults": {"num_inference_steps": 4, "guidance_scale": 1.0},
            "queue_cap": 1000,
            "heartbeat_s": 0.1,
            "lease_s": 20,
            "target_wait_s": 1,
            "engine": {"idle_s": IDLE_S, "drain_s": 30, **engine},
        }
        self.config = parse_config(ServeConfig, values)
        headers = {"Authorization": f"Bearer {create_key(self.config.keys_path(), 'benchmark')}"}
        self.client = httpx.Client(base_url=deploy(self.config), headers=headers, timeout=60)
        self.store: JobStore = open_store(self.config.resolved())
        self.image = png_bytes(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))

    def submit(self, **fields: str) -> str:
        """The id of a queued video. Asks again while a process of the service is away."""
        asked = {"prompt": "a bar", "num_frames": "9", **fields}
        headers = {"Idempotency-Key": f"{random.getrandbits(128):032x}"}
        while True:
            try:
                files = {"input_reference": ("first.png", self.image)}
                answer = self.client.post("/v1/videos", data=asked, files=files, headers=headers)
                if answer.status_code == 200:
                    return str(answer.json()["id"])
                if answer.status_code < 500:
                    raise RuntimeError(answer.text)
            except httpx.HTTPError:
                pass
            time.sleep(0.5)

    def wait(self, videos: list[str], timeout_s: float) -> list[Job]:
        """Their jobs, once all have ended. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            jobs = [self.store.get(video) for video in videos]
            if all(job is not None and job.status in ("completed", "failed") for job in jobs):
                return [job for job in jobs if job is not None]
            if time.monotonic() > deadline:
                stuck = [job.id for job in jobs if job is not None and job.status not in ("completed", "failed")]
                raise TimeoutError(f"after {timeout_s:g} s {len(stuck)} videos have not ended: {stuck[:5]}")
            time.sleep(0.05)


def actors(*names: str) -> list[Any]:
    """Living actors whose class or name holds one of these, the newest last."""
    from ray.util.state import list_actors

    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
    found = [actor for actor in alive if any(name in f"{actor.class_name} {actor.name}" for name in names)]
    return sorted(found, key=began)


def began(actor: Any) -> float:
    """When an actor's process started, in seconds since 1970; 0 where it has just ended."""
    try:
        return psutil.Process(actor.pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def overheads_ms(service: Service, rounds: int, queued: int) -> list[float]:
    """Of each video but the first of a round, which may have waited for its engine."""
    found = []
    for _ in range(rounds):
        jobs = service.wait([service.submit() for _ in range(queued)], 600)
        jobs.sort(key=lambda job: job.completed_at or 0.0)
        for before, job in itertools.pairwise(jobs):
            assert job.timings is not None
            between = (job.completed_at or 0.0) - max(before.completed_at or 0.0, job.created_at)
            found.append(1000 * (between - sum(job.timings.values())))
    return found


@contextmanager
def polling(service: Service, video: str) -> Iterator[None]:
    """20 status polls a second while the block runs."""
    ends = threading.Event()

    def poll() -> None:
        due = time.monotonic()
        while not ends.is_set():
            service.client.get(f"/v1/videos/{video}")
            due += 1 / POLLS_A_SECOND
            time.sleep(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def cpu_seconds(*names: str) -> float:
    """CPU time that the processes of these actors have taken so far."""
    times = [psutil.Process(actor.pid).cpu_times() for actor in actors(*names)]
    return sum(t.user + t.system for t in times)


def poll_ms(service: Service, video: str, polls: int = 200) -> float:
    """CPU time of the service's processes a status poll, less what they take at rest."""
    names = ("#Ingress#", "#Dispatcher#", "ProxyActor")
    taken = []
    for asked in (True, False):
        before, began = cpu_seconds(*names), time.monotonic()
        if asked:
            for _ in range(polls):
                service.client.get(f"/v1/videos/{video}").raise_for_status()
            lasted = time.monotonic() - began
        else:
            time.sleep(lasted)
        taken.append(cpu_seconds(*names) - before)
    return 1000 * (taken[0] - taken[1]) / polls


@contextmanager
def spinning(share: float) -> Iterator[None]:
    """A process of its own that takes this share of a core while the block runs, and has to do with nothing."""
    code = "import sys, time\nwhile True:\n    until = time.process_time() + float(sys.argv[1]) / 20\n"
    code += "    due = time.monotonic() + 1 / 20\n    while time.process_time() < until: pass\n"
    code += "    time.sleep(max(0.0, due - time.monotonic()))"
    process = subprocess.Popen([sys.executable, "-c", code, str(share)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def slowed(service: Service, rounds: int, share: float) -> dict[str, float]:
    """CPU time of a video's denoising with polls, and beside as much other load, over that alone; medians of rounds.

    Args:
        service: with one engine of one rank.
        rounds: of three videos each.
        share: of a core that the polls take.
    """
    ratios: dict[str, list[float]] = {"polls": [], "equal_load": []}
    for _ in range(rounds):
        taken = {}
        for beside in ("nothing", *ratios):
            video = service.submit(num_inference_steps="40")
            while (job := service.store.get(video)) is None or job.progress < 5:
                time.sleep(0.01)
            (rank,) = actors("RankProcess")
            process = psutil.Process(rank.pid)
            before = process.cpu_times()
            with ExitStack() as load:
                if beside != "nothing":
                    load.enter_context(polling(service, video) if beside == "polls" else spinning(share))
                service.wait([video], 120)
            after = process.cpu_times()
            taken[beside] = after.user + after.system - before.user - before.system
        for beside, values in ratios.items():
            values.append(taken[beside] / taken["nothing"])
    return {f"steps_slowed_by_{beside}": statistics.median(values) for beside, values in ratios.items()}


def cold_start(service: Service) -> dict[str, float]:
    """Seconds from the first video at no engine to its first step."""
    while actors("#Engine#"):
        time.sleep(0.5)
    video = service.submit(num_inference_steps="40")
    while (job := service.store.get(video)) is None or not job.progress:
        time.sleep(0.01)
    first_step = time.time()
    engine, rank = actors("#Engine#")[-1], actors("RankProcess")[-1]
    assert job.started_at is not None
    marks = [job.created_at, began(engine), began(rank), job.started_at, first_step]
    parts = ("replica", "coordinator", "ranks_model_warm_up", "first_step")
    service.wait([video], 120)
    seconds = {
        f"cold_{part}_s": after - before for part, (before, after) in zip(parts, itertools.pairwise(marks), strict=True)
    }
    return {**seconds, "cold_start_s": first_step - job.created_at}


def soak(service: Service, count: int, median_s: float, kills: bool) -> dict[str, float]:
    """Make many videos, while processes are killed or not, and look at each result."""
    ends, killed = threading.Event(), 0
    pause_s = max(3 * median_s, 20.0)  # at least three median job times lie between two kills

    def kill() -> None:
        nonlocal killed
        chosen = random.Random(0)
        while not ends.wait(pause_s):
            name = chosen.choice(["RankProcess", "RankProcess", "#Engine#", "#Dispatcher#", "#Ingress#"])
            if found := actors(name):
                os.kill(chosen.choice(found).pid, signal.SIGKILL)
                killed += 1

    thread = threading.Thread(target=kill, daemon=True)
    if kills:
        thread.start()
    try:
        jobs = service.wait([service.submit() for _ in range(count)], 3600)
    finally:
        ends.set()
    if kills:
        thread.join()
    completed = [job for job in jobs if job.status == "completed"]
    results = service.config.results()
    wrong = sum(job.attempts < service.config.max_attempts for job in jobs if job.status == "failed")
    for job in completed:
        files = list(results.glob(f"{job.id}.*"))
        wrong += len(files) != 1 or sha256_file(files[0]) != job.sha256
    name = "soak_killed" if kills else "soak"
    return {f"{name}_completed": len(completed) / count, f"{name}_kills": killed, f"{name}_wrong": wrong}


def main(argv: list[str] | None = None) -> None:
    """Measure everything. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of 20 queued videos")
    parser.add_argument("--soak", type=int, default=0, help="videos made without, and with, kills")
    given = parser.parse_args(argv)
    end_on_sigterm()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="cs-serve-") as name, LocalHead(log=Path(name) / "head") as head:
        os.environ |= {name: value for name, value in head.environment.items() if name.startswith("RAY_")}
        import ray  # reads the environment
        from ray import serve as ray_serve

        connect(head.address, "head", log_to_driver=False)
        try:
            service = Service(Path(name), max_replicas=1)
            figures |= cold_start(service)
            found = overheads_ms(service, given.rounds, 20)
            figures["overhead_ms_p50"] = statistics.median(found)
            figures["overhead_ms_p99"] = statistics.quantiles(found, n=100, method="inclusive")[98]
            video = service.submit()
            (job,) = service.wait([video], 120)
            figures["poll_cpu_ms"] = poll_ms(service, video)
            figures |= slowed(service, 5, figures["poll_cpu_ms"] * POLLS_A_SECOND / 1000)
            if given.soak:
                for kills in (False, True):
                    figures |= soak(service, given.soak, job.seconds, kills)
                figures["soak_wrong"] += figures.pop("soak_killed_wrong")
        finally:
            ray_serve.shutdown()
            ray.shutdown()
    figures = {key: round(value, 3) for key, value in figures.items()}
    for key, value in figures.items():
        print(f"  {key:32} {value}")
    passed = all(figures[key] <= bound for key, bound in TARGETS.items())
    targets = {key: f"<= {bound}" for key, bound in TARGETS.items()}
    if given.soak:
        passed &= all(figures[key] >= SOAK_TARGETS[key] for key in ("soak_completed", "soak_killed_completed"))
        passed &= figures["soak_wrong"] <= SOAK_TARGETS["soak_wrong"]
        targets |= {"soak_completed": ">= 1", "soak_killed_completed": ">= 0.95", "soak_wrong": "<= 0"}
    print(json.dumps({"name": "serve", "figures": figures, "targets": targets, "pass": passed}))


if __name__ == "__main__":
    main()
