"""A training job that is killed with -9 and started again, with another number of workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import TrainConfig
from cinesynth.errors import ConfigError, IdentityError, RunTaken, StorageError, TrainingError, user_error
from cinesynth.lease import held
from cinesynth.runs import Run, read_events
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.driver import train
from cinesynth.train.validations import FOLDER, read_records
from cinesynth.wan.card import read_card
from tests.conftest import REPOSITORY, Head
from tests.small_disk import fill, resize, small_disk

pytestmark = pytest.mark.timeout(900)

STEPS = 6


def config(head: Head, storage: Path, name: str, **changes: object) -> TrainConfig:
    values = {
        "name": name,
        "storage": str(storage),
        "ray": {"address": head.address},
        "dataset": "clips",
        "optimizer": {"steps": STEPS, "lr": 1e-2, "batch_size": 2},
        "checkpoint_every": 1,
        "caption_dropout": 0.2,
    }
    return parse_config(TrainConfig, {**values, **changes})


def losses(storage: Path, name: str) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_events(Storage.open(storage).child("runs", name)) if "loss" in e}


def checkpoints(storage: Path, name: str) -> list[Path]:
    """Checkpoints that are whole: their manifests."""
    return sorted((storage / "runs" / name / "checkpoints").glob("step-*.json"))


@pytest.mark.slow
def test_a_killed_run_continues_with_two_workers_and_gives_the_same_losses(ray_head: Head, storage: Path) -> None:
    whole = train(config(ray_head, storage, "whole"))
    first = config(ray_head, storage, "killed")
    command = [
        *(sys.executable, "-m", "jobs.train", f"name={first.name}", f"storage={storage}", "dataset=clips"),
        *(f"ray.address={ray_head.address}", f"optimizer.steps={STEPS}", "optimizer.lr=1e-2"),
        *("optimizer.batch_size=2", "checkpoint_every=1", "caption_dropout=0.2"),
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 120
        while len(checkpoints(storage, "killed")) < 2:
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (storage / "runs" / "killed" / "result.json").exists()
    with pytest.raises(IdentityError, match=r"identity\.lora\.rank"):
        train(config(ray_head, storage, "killed", lora={"rank": 2}))
    again = train(config(ray_head, storage, "killed", workers=2))
    assert losses(storage, "killed") == pytest.approx(losses(storage, "whole"), rel=1e-4)
    assert sorted(losses(storage, "killed")) == list(range(1, STEPS + 1))
    assert again["figures"]["val_loss_last"] == pytest.approx(whole["figures"]["val_loss_last"], rel=1e-4)
    assert read_card(again["outputs"]["adapter"]).step == STEPS


def pids_of_actors(head: Head, kind: str) -> list[int]:
    """Processes that hold a living actor whose class is called so."""
    return [actor.pid for actor in head.actors(kind)]


def stop_in_mid_commit(folder: Path, workers: list[int]) -> Path:
    """Stop the workers while the newest state lies in the folder without its manifest; returns the manifest's place."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        newest = max((path.name[: len("step-00000000")] for path in folder.glob("step-*.safetensors")), default=None)
        if newest is not None and not (manifest := folder / f"{newest}.json").exists():
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)  # until all of their threads stand
            if not manifest.exists():
                return manifest
            for pid in workers:  # the signal came too late
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
    raise AssertionError("no worker was stopped between a state and its manifest")


@pytest.mark.slow
def test_kills_of_all_kinds_leave_the_same_adapter(ray_head: Head, storage: Path) -> None:
    """A rank is killed, the controller and the ranks in mid-commit of a checkpoint, and the driver is stopped as
    `ray job stop` does; each time it goes on."""
    steps, folder = 30, storage / "runs" / "hunted" / "checkpoints"
    many = {"optimizer": {"steps": steps, "lr": 1e-2, "batch_size": 2}, "workers": 2, "max_failures": 3}
    whole = train(config(ray_head, storage, "left-alone", **many))
    command = [
        *(sys.executable, "-m", "jobs.train", "name=hunted", f"storage={storage}", "dataset=clips", "workers=2"),
        *(f"ray.address={ray_head.address}", f"optimizer.steps={steps}", "optimizer.lr=1e-2"),
        *("optimizer.batch_size=2", "checkpoint_every=1", "caption_dropout=0.2", "max_failures=3"),
    ]

    def reached() -> int:
        return max((int(path.stem.removeprefix("step-")) for path in checkpoints(storage, "hunted")), default=0)

    def wait_for_progress(process: subprocess.Popen[str]) -> None:
        wanted, deadline = reached() + 2, time.monotonic() + 120
        while reached() < wanted:
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        wait_for_progress(job)
        os.kill(pids_of_actors(ray_head, "RayTrainWorker")[0], signal.SIGKILL)
        wait_for_progress(job)
        controllers, workers = (pids_of_actors(ray_head, kind) for kind in ("TrainController", "RayTrainWorker"))
        manifest = stop_in_mid_commit(folder, workers)
        for pid in [*controllers, *workers]:
            os.kill(pid, signal.SIGKILL)
        assert not manifest.exists()
        wait_for_progress(job)
        job.send_signal(signal.SIGTERM)
        told, _ = job.communicate(timeout=120)
    assert told.count("they start again (failure 1 of at most 3 without progress)") == 2, told
    assert Run.at(config(ray_head, storage, "hunted", **many)).folder.read_json("result.json")["status"] == "cut"
    assert reached() < steps
    again = train(config(ray_head, storage, "hunted", **many))
    assert again["figures"]["adapter_sha256"] == whole["figures"]["adapter_sha256"]
    assert losses(storage, "hunted") == losses(storage, "left-alone")
    assert sorted(losses(storage, "hunted")) == list(range(1, steps + 1))


@pytest.mark.slow
def test_what_cannot_work_is_told_in_one_line(ray_head: Head, storage: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"workers = 50: each takes 1 CPU; the cluster's nodes \(4 CPU\) hold 4 such workers"
    ):
        train(config(ray_head, storage, "many", workers=50, optimizer={"steps": 2, "batch_size": 50}))
    with pytest.raises(ConfigError, match=r"lora\.rank: 300 is above the width 256"):
        train(config(ray_head, storage, "wide", lora={"rank": 300}))
    hot = config(ray_head, storage, "hot", optimizer={"steps": STEPS, "lr": 1e30, "batch_size": 2, "warmup": 0.0})
    started = time.monotonic()
    with held(Run.at(hot)), pytest.raises(RunTaken, match="'hot' is being worked on by process"):
        train(hot)
    with pytest.raises(Exception, match="worker") as failed:
        train(hot)
    found = user_error(failed.value)
    assert isinstance(found, TrainingError)
    assert re.match(r"step \d: loss nan, gradient norm nan, on windows [0-9a-f]", str(found))
    assert f"the last checkpoint is of step {len(checkpoints(storage, 'hot'))}" in str(found)
    assert Run.at(hot).folder.read_json("result.json")["status"] == "failed"
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_training_which_goes_on_once_there_is_room(
    ray_head: Head, storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        shutil.copytree(storage / "datasets", disk / "datasets")
        given = config(
            ray_head,
            disk,
            "cramped",
            optimizer={"steps": 40, "lr": 1e-2, "batch_size": 2},
            validation={"every": 1, "sigmas": [0.5], "max_windows": 1},
            checkpoint_every=1,
        )
        filled = []

        def once_saved(step: int, figures: Mapping[str, float]) -> None:
            if checkpoints(disk, "cramped") and not filled:
                filled.append(step)
                fill(disk, 8192)

        with pytest.raises(Exception, match="No space left on device") as failed:
            train(given, [once_saved])
        found = user_error(failed.value)
        assert isinstance(found, StorageError)
        assert "give the command again" in str(found)
        assert "they start again" not in caplog.text  # nothing would be other
        whole = StoredCheckpoints(Storage.open(disk).child("runs", "cramped", "checkpoints")).latest()
        assert whole is not None
        assert 0 < whole.step < 40
        resize(disk, "64m")
        assert train(given)["figures"]["steps"] == 40
        assert sorted(losses(disk, "cramped")) == list(range(1, 41))


@pytest.mark.slow
def test_early_stop_delivers_the_same_adapter_wherever_videos_are_made(ray_head: Head, storage: Path) -> None:
    """A rank is killed as soon as it is known that the first validation beside the training was made."""
    began = time.time()
    videos = {"every": 2, "max_windows": 2, "sampler": {"steps": 16, "guidance_scale": 1.0}}
    delivered, curves, beside = {}, {}, {}
    for placement in ("inline", "after", "task"):
        name = f"stopped-{placement}"
        heard: list[tuple[int, Mapping[str, float]]] = []

        def hear(step: int, figures: Mapping[str, float], heard: Any = heard, placement: str = placement) -> None:
            heard.append((step, figures))
            if placement == "task" and [s for s, f in heard if "lpips" in f] == [2] == [step]:
                os.kill(pids_of_actors(ray_head, "RayTrainWorker")[0], signal.SIGKILL)

        stopping = config(
            ray_head,
            storage,
            name,
            early_stop={"patience": 1, "min_delta": 0.5},  # the second validation ends it
            validation_videos={**videos, "placement": placement},
            optimizer={"steps": 30, "lr": 1e-3, "batch_size": 2},
        )
        done = train(stopping, [hear])
        delivered[placement] = {k: done["figures"][k] for k in ("steps", "stopped_at", "adapter_sha256")}
        card = read_card(done["outputs"]["adapter"])
        assert (card.sha256, card.step) == (done["figures"]["adapter_sha256"], done["figures"]["steps"])
        assert card.metrics["lpips"] == done["figures"]["lpips"]
        run = Storage.open(storage).child("runs", name)
        records = read_records(run.child(FOLDER))
        curves[placement] = {step: records[step]["figures"]["lpips"] for step in (2, 4)}
        assert [step for step, figures in heard if "lpips" in figures] == list(records)
        times = {e["step"]: e["time"] for e in read_events(run) if "loss" in e}
        beside[placement] = sum(records[2]["started"] < t < records[2]["ended"] for t in times.values())
        assert {"inline": 4 <= max(times) < 30, "after": max(times) == 30, "task": max(times) > 4}[placement]
        assert (storage / "runs" / name / "report.html").stat().st_size < 5_000_000
    assert delivered["inline"]["stopped_at"] == 4
    assert delivered["inline"] == delivered["after"] == delivered["task"]
    assert curves["inline"] == pytest.approx(curves["task"], rel=1e-4)
    assert curves["after"] == curves["task"]
    assert beside["inline"] == beside["after"] == 0
    assert beside["task"] > 2  # training went on all the while
    from ray.util.state import list_tasks

    # By name, which the head filters by: of all tasks it tells 10,000 at most.
    names = [f"validate stopped-{placement} at step {step}" for placement in delivered for step in range(2, 31, 2)]
    validations = [
        task
        for name in names
        for task in list_tasks(ray_head.dashboard, detail=True, filters=[("name", "=", name)])
        if task.creation_time_ms / 1000 > began
    ]
    assert len(validations) >= 4
    assert {task.state for task in validations} == {"FINISHED"}  # what was of no use any more has ended by itself


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "fsdp2", "workers": 2},
        {"strategy": "hsdp", "workers": 2, "shard_over": 2},
        {"strategy": "deepspeed", "zero_stage": 2, "workers": 2},
        {"strategy": "deepspeed", "zero_stage": 3, "workers": 2},
    ],
    ids=["fsdp2", "hsdp", "zero-2", "zero-3"],
)
def test_every_strategy_trains_on_ray(ray_head: Head, storage: Path, changes: dict[str, object]) -> None:
    one = config(ray_head, storage, "of-one-worker", optimizer={"steps": 2, "lr": 1e-2, "batch_size": 2})
    other = one.model_copy(update={"name": "-".join(map(str, changes.values())), **changes})
    train(one)
    assert train(other)["figures"]["steps"] == 2
    assert losses(storage, other.name) == pytest.approx(losses(storage, one.name), rel=1e-4)
