"""A training job that is killed with -9 and started again, with another number of workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cinesynth.config import PrepareConfig, TrainConfig
from cinesynth.data.prepare import prepare
from cinesynth.errors import ConfigError, IdentityError, RunTaken, TrainingError, user_error
from cinesynth.lease import held
from cinesynth.runs import Run, read_events
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.driver import train
from cinesynth.wan.card import read_card
from tests.conftest import REPOSITORY, Head

STEPS = 6


@pytest.fixture(scope="module")
def storage(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage location with a small clips dataset."""
    folder = tmp_path_factory.mktemp("resume")
    write_scripted_clips(folder / "footage", 6, seed=1)
    config = parse_config(
        PrepareConfig,
        {
            "name": "clips",
            "storage": str(folder / "storage"),
            "ray": {"address": ray_head.address},
            "footage": [{"path": str(folder / "footage")}],
            "window": {"num_frames": 9, "sizes": "96x64", "max_per_shot": 1},
            "split": {"val": 0.3, "test": 0.0},
        },
    )
    with ray_session(config):
        prepare(config)
    return folder / "storage"


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


@pytest.mark.slow
def test_what_cannot_work_is_told_in_one_line(ray_head: Head, storage: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"workers: 50 with 1 CPU each; the cluster's nodes \(4 CPU and 0 GPU hold 4\)"
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
