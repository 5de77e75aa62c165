"""Which failures of the workers are tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cinesynth.config import TrainConfig
from cinesynth.errors import AttemptFailed, ConfigError, DatasetError, TrainingError
from cinesynth.lease import Lease
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.train import driver
from cinesynth.train.beside import Reporter
from cinesynth.train.check import check_training
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.failures import Failures
from cinesynth.train.state import Saved


class Attempts:
    """Worker groups that end as a list says: an error, or a number of steps that are checkpointed before one."""

    def __init__(self, run: Run, ends: list[Any]) -> None:
        self.run, self.ends, self.started = run, list(ends), 0

    def __call__(self, plan: driver.Plan, placement: str | None, check: Callable[[], None]) -> None:
        self.started += 1
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        if isinstance(end, int):
            checkpoints = StoredCheckpoints(self.run.folder.child("checkpoints"))
            checkpoints.save(Saved({"a": torch.zeros(1)}, end, {}))
            checkpoints.flush()
            raise RuntimeError("a node went away")


@pytest.fixture
def plan(tmp_path: Path) -> driver.Plan:
    values = {"name": "noir", "storage": str(tmp_path), "dataset": "d", "max_failures": 2}
    config = parse_config(TrainConfig, values)
    return driver.Plan(config, Run.at(config), None)  # type: ignore[arg-type]  # no dataset is read


def run(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch, ends: list[Any]) -> Attempts:
    attempts = Attempts(plan.run, ends)
    monkeypatch.setattr(driver, "_fit", attempts)
    driver._train_to_the_end(plan, Lease(plan.run), Reporter(plan.run, ()))
    return attempts


def test_failures_without_progress_are_counted_and_progress_forgives_them(
    plan: driver.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = RuntimeError("a node went away")
    assert run(plan, monkeypatch, [gone, 3, gone, 5, gone, None]).started == 6


def test_a_checkpoint_that_takes_the_place_of_a_damaged_one_is_progress(plan: driver.Plan) -> None:
    def checkpoints() -> StoredCheckpoints:
        return StoredCheckpoints(plan.run.folder.child("checkpoints"))

    before = checkpoints()
    before.save(Saved({"a": torch.zeros(1)}, 8, {}))
    before.flush()
    failures = Failures(plan.run.folder, most=1)
    assert failures.another()
    state = next(name for name in before.folder.list() if name.endswith(".safetensors"))
    before.folder.write_text(state, "cut")
    again = checkpoints()
    assert again.latest() is None
    again.save(Saved({"a": torch.zeros(1)}, 2, {}))
    again.flush()
    assert failures.another()
    assert (failures.count, failures.step) == (1, 2)
    assert not failures.another()


def test_too_many_failures_without_progress_end_the_run(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = RuntimeError("a node went away")
    with pytest.raises(RuntimeError, match="a node went away"):
        run(plan, monkeypatch, [gone, gone, gone, None])


def test_what_would_fail_again_is_not_tried_again(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class FromRay(Exception):
        __module__ = "ray.train"

    wrapped = FromRay("Training failed due to worker errors:\ncinesynth.errors.TrainingError: step 3: loss nan")
    attempts = Attempts(plan.run, [wrapped, None])
    monkeypatch.setattr(driver, "_fit", attempts)
    with pytest.raises(FromRay):
        driver._train_to_the_end(plan, Lease(plan.run), Reporter(plan.run, ()))
    assert attempts.started == 1
    with pytest.raises(TrainingError):
        run(plan, monkeypatch, [TrainingError("step 3: loss nan"), None])
    assert run(plan, monkeypatch, [AttemptFailed("a store did not answer"), None]).started == 2


def test_a_full_training_is_trained_at_its_last_step_and_not_where_it_was_called_off(tmp_path: Path) -> None:
    values = {"name": "noir", "storage": str(tmp_path), "dataset": "d", "mode": "full", "optimizer": {"steps": 1000}}
    config = parse_config(TrainConfig, values)
    plan = driver.Plan(config, Run.at(config), None)  # type: ignore[arg-type]  # no dataset is read
    checkpoints = StoredCheckpoints(plan.run.folder.child("checkpoints"))
    found = [driver._is_trained(plan, checkpoints)]
    for steps in (503, 1000):
        plan.run.folder.write_json("trained.json", {"loss_last": 0.1, "steps": steps})
        found.append(driver._is_trained(plan, checkpoints))
    assert found == [False, False, True]


def test_parents_are_merged_into_an_fp32_base_only(tmp_path: Path) -> None:
    values = {"name": "noir", "storage": str(tmp_path), "dataset": "d", "merge": True, "dtype": "bf16"}
    with pytest.raises(ConfigError, match="merge: true needs an fp32 base, and this one is loaded in bfloat16"):
        check_training(parse_config(TrainConfig, values))
    with pytest.raises(DatasetError, match="'d'"):
        check_training(parse_config(TrainConfig, values | {"dtype": "fp32"}))
