"""A small search on a real Ray: it is killed, goes on, and says what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from cinesynth.config import PrepareConfig, PublishConfig, TuneConfig
from cinesynth.data.prepare import prepare
from cinesynth.errors import ConfigError
from cinesynth.publish import publish
from cinesynth.runs import Run
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.session import ray_session
from cinesynth.settings import parse_config, to_yaml
from cinesynth.wan.card import read_card
from tests.conftest import REPOSITORY, Head
from tune.outline import outline_study
from tune.records import Records
from tune.study import open_study, tune_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def storage(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_scripted_clips(folder / "footage", 9, seed=1)
    config = parse_config(
        PrepareConfig,
        {
            "name": "clips",
            "storage": str(folder / "storage"),
            "ray": {"address": ray_head.address},
            "footage": [{"path": str(folder / "footage")}],
            "window": {"num_frames": 9, "sizes": "96x64", "max_per_shot": 1},
            "split": {"val": 0.25, "test": 0.25},
        },
    )
    with ray_session(config):
        prepare(config)
    return folder / "storage"


def config(head: Head, storage: Path, **changes: Any) -> TuneConfig:
    values = {
        "name": "study",
        "storage": str(storage),
        "ray": {"address": head.address},
        "dataset": "clips",
        "train": {
            "lora": {"rank": 4, "alpha": 4},
            "optimizer": {"steps": 2, "lr": 1e-3, "batch_size": 2},
            "validation": {"sigmas": [0.5], "max_windows": 1},
        },
        "space": {"rank": [2, 8], "alpha_over_rank": None, "lr": [1e-4, 1e-2]},
        "objectives": ["lpips", "lpips_late"],
        "baseline_seeds": 1,
        "final_seeds": 1,
        "sampler": {"steps": 2, "guidance_scale": 1.0},
        "budget": {"trials": 2},
        "concurrency": 1,
    }
    return parse_config(TuneConfig, {**values, **changes})


def placement_groups() -> int:
    from ray.util.placement_group import placement_group_table

    return sum(group["state"] not in ("REMOVED",) for group in placement_group_table().values())


def test_a_killed_search_goes_on_and_recommends(ray_head: Head, storage: Path, tmp_path: Path) -> None:
    given = config(ray_head, storage)
    told = outline_study(given).text()
    assert "2 trials + 0 more of the baseline + 2 of the comparison = 4, 8 steps at most" in told
    records = Records(Run.at(given).folder)
    (tmp_path / "tune.yaml").write_text(to_yaml(given))
    command = [sys.executable, "-m", "jobs.tune", "--config", str(tmp_path / "tune.yaml")]
    job = subprocess.Popen(command, cwd=REPOSITORY, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 240
        while len(records.read()) < 1:
            assert job.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    before = records.read()
    ended = {name: record.ended for name, record in before.items()}
    done = tune_study(given)
    known = records.read()
    assert {name: known[name].ended for name in before} == ended  # none was done again
    assert len(known) == 2
    assert {record.status for record in known.values()} == {"complete"}
    study = open_study(given, Run.at(given))
    states = [t.state for t in study.trials]
    assert states == [optuna.trial.TrialState.COMPLETE] * 2
    deadline = time.monotonic() + 60
    while placement_groups() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert placement_groups() == 0

    folder = storage / "runs" / "study"
    assert done["figures"]["delivered"] in known
    assert len((folder / "trials.csv").read_text().splitlines()) == 3
    page = (folder / "report.html").read_text()
    assert "Recommended is" in page or "No trial beats the baseline" in page
    assert all(name in page for name in known)
    assert json.loads((folder / "base.json").read_text())["figures"].keys() >= {"lpips", "lpips_late"}
    values = {"name": "p", "storage": str(storage), "adapter": "study", "adapter_name": "found"}
    published = publish(parse_config(PublishConfig, values))
    assert published["outputs"]["adapter"].startswith("found@")
    assert read_card(done["outputs"]["adapter"]).sha256 == done["figures"]["adapter_sha256"]

    assert tune_study(given) == done
    more = tune_study(config(ray_head, storage, budget={"trials": 3}))
    assert more["figures"]["trials"] == 3
    assert len(records.read()) == 3
    assert set(known) < set(records.read())


def test_a_trial_that_fails_is_tried_twice_and_stays_out(ray_head: Head, storage: Path) -> None:
    """The learning rate of one point is so high that its loss is not finite."""
    given = config(
        ray_head,
        storage,
        name="broken",
        space={"rank": None, "alpha_over_rank": None, "lr": [1e-4, 1e30]},
        points=[{"lr": 1e30}],
        budget={"trials": 2},
        baseline_seeds=1,
        final_seeds=0,
    )
    done = tune_study(given)
    assert done["figures"]["failed"] == 1
    failed = [record for record in Records(Run.at(given).folder).read().values() if record.status == "failed"]
    assert "loss nan" in failed[0].facts["reason"]
    states = [t.state.name for t in open_study(given, Run.at(given)).trials]
    assert states == ["COMPLETE", "FAIL"]
    wide = {"lora": {"rank": 4}, "workers": 50, "optimizer": {"batch_size": 50, "lr": 1e-3}}
    with pytest.raises(ConfigError, match=r"workers = 50"):
        tune_study(config(ray_head, storage, name="wide", train=wide))
