"""What a worker refuses, which is a node that has other files than the driver read; and what it tells Ray."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch

from cinesynth.errors import TrainingError
from cinesynth.storage import Storage
from cinesynth.train import worker
from cinesynth.train.state import Saved
from cinesynth.train.strategy import World
from cinesynth.train.worker import POINTER, WorkerCheckpoints, train_worker
from cinesynth.wan.card import read_card
from cinesynth.wan.folder import base_hash
from tests.tiny_dataset import encoded_dataset
from tests.wan.test_chain import make


class OneWorker:
    """What Ray Train tells the only worker of a group."""

    def get_world_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1

    def get_local_world_size(self) -> int:
        return 1


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver hands a worker of a run on one parent."""
    storage = tmp_path_factory.mktemp("storage")
    dataset = encoded_dataset(Storage.open(storage / "datasets" / "d"), "nano")
    parent = make(storage / "parent", 2, "cross_attention", 1, [])
    return {
        "config": {"name": "noir", "storage": str(storage), "dataset": "d"},
        "dataset": dataset.storage.reference(),
        "parents": [(str(parent), 1.0)],
        "placement": None,
        "inputs": {
            "dataset": dataset.manifest_sha256,
            "base": base_hash("nano"),
            "parent_0": read_card(parent).sha256,
        },
    }


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a group's only worker; its loggers are as before afterwards."""
    levels = {name: logging.getLogger(name).level for name in ("", "cinesynth", "cinesynth.metrics")}
    monkeypatch.setattr(ray.train, "get_context", OneWorker)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["dataset", "base", "parent_0"])
def test_a_node_with_other_files_than_the_driver_read_is_refused_with_both(task: dict[str, Any], name: str) -> None:
    found, expected = task["inputs"][name], "0f" * 32
    told = (
        f"{name} on {socket.gethostname()} has the content {found[:12]}, but this run was started with {expected[:12]}"
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(told)}; give every node the same files$"):
        train_worker({**task, "inputs": task["inputs"] | {name: expected}})


@pytest.mark.usefixtures("alone")
def test_a_full_training_that_is_called_off_leaves_no_model_and_goes_on(
    task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train, "report", lambda figures, checkpoint: None)
    config = {**task["config"], "name": "full", "mode": "full", "optimizer": {"steps": 2, "batch_size": 1}}
    whole = {**task, "config": config, "parents": []}
    run = Storage.open(config["storage"]).child("runs", "full")
    with monkeypatch.context() as called_off:
        called_off.setattr(worker, "EndRequest", lambda run, looks: lambda: True)
        train_worker(whole)
    assert (run.exists("trained.json"), run.exists("model")) == (False, False)
    train_worker(whole)
    assert run.read_json("trained.json")["steps"] == 2
    assert run.holds("model")


def test_what_ray_holds_as_a_checkpoint_points_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[dict[str, Any], dict[str, Any] | None]] = []

    def report(figures: dict[str, Any], checkpoint: ray.train.Checkpoint | None) -> None:
        told.append((figures, checkpoint and json.loads((Path(checkpoint.path) / POINTER).read_text())))

    monkeypatch.setattr(ray.train, "report", report)
    for rank in (0, 1):
        store = WorkerCheckpoints(Storage.open(tmp_path), World(rank, 2), 2, tuple, None)
        store.save(Saved({"w": torch.ones(1)}, 7, {"loss": 0.5}))
        store.flush()
    figures = {"step": 7, "loss": 0.5}
    assert told == [(figures, {"manifest": str(tmp_path / "step-00000007.json")}), (figures, None)]
    assert json.loads((tmp_path / "step-00000007.json").read_text())["step"] == 7
