"""Runs: one name, one identity; complete only with the result of its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cinesynth.config import EvaluateConfig, JobConfig, TrainConfig
from cinesynth.errors import IdentityError, MediaError, StorageError
from cinesynth.runs import Run, complete_result, read_result, records_its_end
from cinesynth.settings import parse_config, to_yaml
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


def test_of_two_runs_that_begin_at_once_the_one_that_is_not_recorded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(folder: Storage, name: str, data: bytes) -> bool:
        """As on an object store: both writers succeed, and the other one's object stays."""
        other = json.loads(data)
        other["identity"]["lora"]["rank"] = 4
        folder.write_json(name, other)
        return True

    monkeypatch.setattr(Storage, "write_new", overtaken)
    with pytest.raises(IdentityError, match=r"identity\.lora\.rank: recorded 4, given 8"):
        Run.open(config(tmp_path), {"dataset": "aa"})
    assert not Storage.open(tmp_path).exists("runs/r/config.yaml")


def test_runtime_fields_may_change(tmp_path: Path) -> None:
    Run.open(config(tmp_path), {"dataset": "aa"})
    run = Run.open(config(tmp_path, workers=2, strategy="fsdp2", checkpoint_every=7), {"dataset": "aa"})
    assert "workers: 2" in run.folder.read_text("config.yaml")


def test_a_recorded_configuration_holds_its_locations_without_credentials() -> None:
    locations = {"storage": "s3://key:se%2Fcret@bucket/p?region=eu-1", "real": "gs://key@bucket/real"}
    arms = {"a": "s3://key:secret@bucket/takes @ dawn", "b": "/folder/a@b", "c": "s3://bucket/a@b"}
    given = parse_config(EvaluateConfig, {"name": "e", **locations, "arms": arms})
    recorded = yaml.safe_load(to_yaml(given))
    assert (recorded["storage"], recorded["real"]) == ("s3://bucket/p?region=eu-1", "gs://bucket/real")
    assert recorded["arms"] == {"a": "s3://bucket/takes @ dawn", "b": "/folder/a@b", "c": "s3://bucket/a@b"}
    assert parse_config(EvaluateConfig, recorded).identity() == given.identity()


def test_events_come_back_in_order_and_a_rewritten_segment_replaces(tmp_path: Path) -> None:
    run = Run.open(config(tmp_path))
    run.write_events("train-00000010", [{"step": 11}])
    run.write_events("train-00000000", [{"step": 1}, {"step": 9}])
    run.write_events("train-00000000", [{"step": 1}, {"step": 2}])
    assert [e["step"] for e in run.events()] == [1, 2, 11]


# --- how a run ends ------------------------------------------------------------------------------------------


@records_its_end
def job(settings: TrainConfig, error: BaseException | None = None) -> dict[str, Any]:
    run = Run.open(settings, {"dataset": "aa"})
    if error is not None:
        raise error
    return run.finish({"adapter": run.folder.child("adapter").uri}, {})


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MediaError("a.mp4 is damaged"), "failed", "a.mp4 is damaged"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "cut", "stopped from outside"),
        (SystemExit(15), "cut", "stopped from outside"),
    ],
)
def test_a_run_that_does_not_complete_says_how_it_ended_and_runs_again(
    error: BaseException, status: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(type(error)):
        job(config(tmp_path), error)
    ended = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())
    assert ended["status"] == status
    assert ended["reason"].startswith(reason)
    assert Run.open(config(tmp_path), {"dataset": "aa"}).result() is None
    with pytest.raises(StorageError, match=f"it ended {status}"):
        read_result(Storage.open(tmp_path), "r")
    job(config(tmp_path))
    assert read_result(Storage.open(tmp_path), "r")["status"] == "complete"


def test_a_later_failure_does_not_hide_a_complete_result(tmp_path: Path) -> None:
    done = job(config(tmp_path))
    with pytest.raises(MediaError):
        job(config(tmp_path), MediaError("added footage is damaged"))
    assert read_result(Storage.open(tmp_path), "r") == done


def test_a_refused_command_leaves_the_run_of_that_name_alone(tmp_path: Path) -> None:
    Run.open(config(tmp_path), {"dataset": "aa"})
    with pytest.raises(IdentityError):
        job(config(tmp_path, lora={"rank": 4}))
    assert not (tmp_path / "runs" / "r" / "result.json").exists()


def test_a_run_whose_outputs_were_deleted_is_not_complete(tmp_path: Path) -> None:
    run = Run.open(config(tmp_path), {"dataset": "aa"})
    run.folder.write_text("adapter/card.json", "{}")
    run.finish({"adapter": run.folder.child("adapter").uri, "sha256": "ab" * 32}, {})
    assert run.result() is not None
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Run.at(config(moved), {"dataset": "aa"}).result() is not None
    (moved / "runs" / "r" / "adapter" / "card.json").unlink()
    assert Run.at(config(moved), {"dataset": "aa"}).result() is None, "an empty folder is no output"
    moved.rename(tmp_path)


# --- runs of before this version -----------------------------------------------------------------------------

OLD_INPUTS = {"adapter": "a1", "base": "b1", "groups": "c1", "real": "d1"}
OLD_RUN = """{
  "identity": {
    "arms": {"adapter": "/v/adapter", "base": "/v/base"},
    "frames": null,
    "groups": "/v/groups.csv",
    "lpips_net": "alex",
    "metrics": ["fvd", "kvd", "lpips"],
    "real": "/v/real"
  },
  "inputs": {"adapter": "a1", "base": "b1", "groups": "c1", "real": "d1"},
  "kind": "evaluate"
}
"""
OLD_RESULT = """{
  "code_version": "0.1.0",
  "figures": {"kvd/base": 1.5},
  "inputs": {"adapter": "a1", "base": "b1", "groups": "c1", "real": "d1"},
  "kind": "evaluate",
  "name": "old",
  "outputs": {"metrics": "STORAGE/runs/old/metrics.json"},
  "schema": 1
}
"""


@pytest.fixture
def old(tmp_path: Path) -> EvaluateConfig:
    """An evaluation whose videos have moved since the old version made it."""
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(OLD_RUN)
    (folder / "result.json").write_text(OLD_RESULT.replace("STORAGE", str(tmp_path)))
    (folder / "metrics.json").write_text("{}")
    arms = {"base": "/w/base", "adapter": "/w/adapter"}
    values = {"name": "old", "storage": str(tmp_path), "real": "/w/real", "arms": arms, "groups": "/w/groups.csv"}
    return parse_config(EvaluateConfig, values)


def test_an_old_run_without_a_status_is_complete(old: EvaluateConfig) -> None:
    run = Run.open(old, OLD_INPUTS)
    result = run.result()
    assert result is not None
    assert result["figures"] == {"kvd/base": 1.5}
    assert complete_result(run.folder) == result


def test_an_old_run_of_lpips_by_another_network_than_alexnet_is_another_run(
    old: EvaluateConfig, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "old" / "run.json").write_text(OLD_RUN.replace('"alex"', '"vgg"'))
    with pytest.raises(IdentityError, match=r"identity\.lpips_net: recorded 'vgg', which this version"):
        Run.open(old, OLD_INPUTS)


def test_an_old_run_that_lacks_an_input_runs_again_in_place_and_a_changed_input_is_refused(
    old: EvaluateConfig,
) -> None:
    run = Run.open(old, OLD_INPUTS | {"kvd": "version 2"})
    assert run.result() is None
    run.finish({"metrics": run.folder.child("metrics.json").uri}, {})
    assert Run.open(old, OLD_INPUTS | {"kvd": "version 2"}).result() is not None
    with pytest.raises(IdentityError, match=r"inputs\.kvd: recorded 'version 2', given 'version 3'"):
        Run.open(old, OLD_INPUTS | {"kvd": "version 3"})
    with pytest.raises(IdentityError, match=r"inputs\.real: recorded 'd1', given 'd2'"):
        Run.open(old, OLD_INPUTS | {"real": "d2"})


def test_an_old_run_with_other_settings_is_refused(old: EvaluateConfig) -> None:
    with pytest.raises(IdentityError, match=r"identity\.frames: recorded None, given 9"):
        Run.open(old.model_copy(update={"frames": 9}), OLD_INPUTS)
    other_arm = old.model_copy(update={"arms": {"base": "/w/base", "motion": "/w/motion"}})
    with pytest.raises(IdentityError, match=r"identity\.arms: recorded \['adapter', 'base'\]"):
        Run.open(other_arm, OLD_INPUTS)


def test_an_old_training_continues_where_its_dataset_and_parents_moved(tmp_path: Path) -> None:
    identity = {
        **{"caption_dropout": 0.0, "dataset": "clips", "dtype": "auto"},
        "flow": {"distribution": "uniform", "shift": 3.0},
        "lora": {"alpha": 16.0, "rank": 8, "targets": "cross_attention"},
        **{"mode": "lora", "model": "nano", "seed": 0, "stage": "style"},
        "optimizer": {
            **{"algorithm": "adamw", "batch_size": 4, "betas": [0.9, 0.999], "lr": 3e-05},
            **{"max_grad_norm": 1.0, "steps": 4000, "warmup": 0.05, "weight_decay": 0.01},
        },
        "parents": [{"ref": "/adapters/a", "scale": 0.5}],
    }
    inputs = {"dataset": "aa", "base": "bb", "parent_0": "cc"}
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": "train", "identity": identity, "inputs": inputs}))
    moved: JobConfig = config(tmp_path, dataset="/elsewhere/clips", parents=[{"ref": "a@latest", "scale": 0.5}])
    assert Run.open(moved, inputs).recorded_identity() == identity
    with pytest.raises(IdentityError, match=r"parents\.0\.scale: recorded 0\.5, given 1\.0"):
        Run.open(config(tmp_path, parents=[{"ref": "a"}]), inputs)
