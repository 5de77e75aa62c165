"""Runs: one name, one identity; complete only with the result of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import TrainConfig
from cinesynth.errors import IdentityError, StorageError
from cinesynth.runs import Run, read_result
from cinesynth.settings import parse_config
from cinesynth.storage import Storage


def config(storage: Path, **changes: Any) -> TrainConfig:
    return parse_config(TrainConfig, {"name": "r", "storage": str(storage), "dataset": "d", **changes})


def test_a_run_is_complete_with_its_result_only(tmp_path: Path) -> None:
    run = Run.open(config(tmp_path), {"dataset": "aa"})
    assert run.result() is None
    with pytest.raises(StorageError, match="has not finished"):
        read_result(Storage.open(tmp_path), "r")
    run.finish({"adapter": "x"}, {"loss": 1.0})
    again = Run.open(config(tmp_path), {"dataset": "aa"}).result()
    assert again is not None
    assert again == read_result(Storage.open(tmp_path), "r")
    assert again["figures"] == {"loss": 1.0}


def test_another_identity_under_the_same_name_is_refused_with_its_differences(tmp_path: Path) -> None:
    Run.open(config(tmp_path), {"dataset": "aa"})
    with pytest.raises(IdentityError, match=r"identity\.lora\.rank: recorded 8, given 4"):
        Run.open(config(tmp_path, lora={"rank": 4}), {"dataset": "aa"})
    with pytest.raises(IdentityError, match=r"inputs\.dataset: recorded 'aa', given 'bb'"):
        Run.open(config(tmp_path), {"dataset": "bb"})


def test_runtime_fields_may_change(tmp_path: Path) -> None:
    Run.open(config(tmp_path), {"dataset": "aa"})
    run = Run.open(config(tmp_path, workers=2, strategy="fsdp2", checkpoint_every=7), {"dataset": "aa"})
    assert "workers: 2" in run.folder.read_text("config.yaml")


def test_events_come_back_in_order_and_a_rewritten_segment_replaces(tmp_path: Path) -> None:
    run = Run.open(config(tmp_path))
    run.write_events("train-00000010", [{"step": 11}])
    run.write_events("train-00000000", [{"step": 1}, {"step": 9}])
    run.write_events("train-00000000", [{"step": 1}, {"step": 2}])
    assert [e["step"] for e in run.events()] == [1, 2, 11]
