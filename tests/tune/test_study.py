"""A small search on a real Ray: it is killed, goes on, and says what it found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import PublishConfig, TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.publish import publish
from cinesynth.runs import Run, read_events
from cinesynth.settings import load_config, parse_config, to_yaml
from cinesynth.storage import Storage
from cinesynth.train.events import training_steps
from cinesynth.wan.card import read_card
from cinesynth.wan.folder import model_folder
from cluster.pools import POOLS
from tests.conftest import REPOSITORY, Head
from tests.small_search import small_search
from tests.tiny_dataset import encoded_dataset
from tune.outline import outline_study
from tune.records import Records
from tune.study import open_study, tune_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def placement_groups() -> int:
    from ray.util.placement_group import placement_group_table

    return sum(group["state"] not in ("REMOVED",) for group in placement_group_table().values())


def no_placement_group_is_left() -> bool:
    deadline = time.monotonic() + 60
    while placement_groups() and time.monotonic() < deadline:
        time.sleep(0.5)
    return placement_groups() == 0


def wait_for(job: subprocess.Popen[bytes], what: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_a_search_survives_kills_of_a_trial_of_a_node_and_of_its_driver(
    ray_head: Head, storage: Path, tmp_path: Path
) -> None:
    """Trials run on two nodes of a pool, one on each. A process of one trial is killed twice, then a node (a new one
    joins), then the driver; the same command ends the search."""
    nodes = [ray_head.cluster.add_node(num_cpus=1, labels={"pool": "trials"}) for _ in range(2)]
    train = {
        "lora": {"rank": 4, "alpha": 4},
        "optimizer": {"steps": 30, "lr": 1e-3, "batch_size": 2},
        "validation": {"sigmas": [0.5], "max_windows": 1},
        "checkpoint_every": 2,
        "resources": {"labels": {"pool": "trials"}},
    }
    given = small_search(ray_head, storage, train=train, budget={"trials": 3}, concurrency=None)
    told = outline_study(given).text()
    assert "3 trials + 0 more of the baseline + 2 of the comparison = 5, 150 steps at most" in told
    assert "2 trials in this cluster; a trial takes 1 worker" in told
    records = Records(Run.at(given).folder)
    (tmp_path / "tune.yaml").write_text(to_yaml(given))
    command = [sys.executable, "-m", "jobs.tune", "--config", str(tmp_path / "tune.yaml")]
    runs = storage / "runs"

    def begun() -> list[Path]:
        return [run for run in runs.glob("study-*") if list(run.glob("checkpoints/step-*.json"))]

    job = subprocess.Popen(command, cwd=REPOSITORY, env=dict(os.environ))
    try:
        wait_for(job, lambda: len(begun()) == 2)
        trials, workers = ray_head.actors("ImplicitFunc"), ray_head.actors("RayTrainWorker")
        assert len(trials) == len(workers) == 2
        assert len({worker.node_id for worker in workers}) == 2  # they are spread over the pool
        seen = {trial.pid for trial in trials}
        os.kill(trials[0].pid, signal.SIGKILL)
        for kills_again in (True, False):
            new = wait_for(job, lambda: [a.pid for a in ray_head.actors("ImplicitFunc") if a.pid not in seen])
            seen.update(new)
            if kills_again:
                os.kill(new[0], signal.SIGKILL)
        ray_head.cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(ray_head.cluster.add_node(num_cpus=1, labels={"pool": "trials"}))
        wait_for(job, lambda: len(records.read()) >= 1)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    before = records.read()
    done = tune_study(given)
    known = records.read()
    assert {name: known[name].ended for name in before} == {name: record.ended for name, record in before.items()}
    assert len(known) == 3
    assert {record.status for record in known.values()} == {"complete"}
    for name in known:
        steps = [event["step"] for event in training_steps(read_events(Storage.open(runs / name)))]
        assert steps == list(range(1, 31))
    study = open_study(given, Run.at(given))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert len({tuple(t.params.values()) for t in study.trials}) == 3  # the baseline is there once
    assert no_placement_group_is_left()

    folder = runs / "study"
    assert done["figures"]["delivered"] in known
    rows = (folder / "trials.csv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0].endswith("step_seconds,peak_memory_gb,train_seconds,score_seconds,reason,page")
    page = (folder / "report.html").read_text()
    assert "Recommended is" in page or "No trial beats the baseline" in page
    assert all(name in page for name in known)
    assert json.loads((folder / "base.json").read_text())["figures"].keys() >= {"lpips", "lpips_late"}
    values = {"name": "p", "storage": str(storage), "adapter": "study", "adapter_name": "found"}
    published = publish(parse_config(PublishConfig, values))
    assert published["outputs"]["adapter"].startswith("found@")
    assert read_card(done["outputs"]["adapter"]).sha256 == done["figures"]["adapter_sha256"]

    assert tune_study(given) == done
    for node in nodes:
        ray_head.cluster.remove_node(node)


def test_trials_that_fail_or_are_cut_stay_out(ray_head: Head, storage: Path) -> None:
    """The learning rate of one point is so high that its loss is not finite, that of another one so high that its loss
    rises: halving cuts it."""
    train = {
        "lora": {"rank": 4, "alpha": 4},
        "optimizer": {"steps": 72, "lr": 1e-3, "batch_size": 2},
        "validation": {"every": 4, "sigmas": [0.5], "max_windows": 1},
        "checkpoint_every": 4,
    }
    given = small_search(
        ray_head,
        storage,
        name="broken",
        train=train,
        space={"rank": None, "alpha_over_rank": None, "lr": [1e-4, 1e30]},
        points=[{"lr": 1e30}, {"lr": 0.3}],
        asha={"grace": 8, "factor": 10},
        budget={"trials": 3},
        final_seeds=0,
    )
    done = tune_study(given)
    assert (done["figures"]["failed"], done["figures"]["cut"]) == (1, 1)
    assert "loss nan" in done["left_out"]["failed"]
    assert "held-out loss" in done["left_out"]["cut"]
    records = Records(Run.at(given).folder)
    by_lr = {record.trial.point.lr: record for record in records.read().values()}
    assert "loss nan" in by_lr[1e30].facts["reason"]
    assert "held-out loss" in by_lr[0.3].facts["reason"]
    cut = Storage.open(storage).child("runs", by_lr[0.3].name)
    assert cut.read_json("result.json")["status"] == "cut"
    assert max(event["step"] for event in read_events(cut)) < 72  # its workers ended
    assert no_placement_group_is_left()
    assert [t.state.name for t in open_study(given, Run.at(given)).trials] == ["COMPLETE", "FAIL", "PRUNED"]
    page = (storage / "runs" / "broken" / "report.html").read_text()
    assert "cut: held-out loss" in page
    wide = {"lora": {"rank": 4}, "workers": 50, "optimizer": {"batch_size": 50, "lr": 1e-3}}
    with pytest.raises(ConfigError, match=r"a trial takes 50 workers, and the scorer 0: workers = 50"):
        tune_study(small_search(ray_head, storage, name="too-wide", train=wide))


def test_the_shipped_search_fits_the_gpus_that_it_names(ray_head: Head, tmp_path: Path) -> None:
    """Four A100s that Ray is told of take one trial of three workers beside the scorer."""
    model, dataset = tmp_path / "model", Storage.open(tmp_path / "storage" / "datasets" / "wan14b-clips")
    shutil.copytree(model_folder("nano"), model)
    encoded_dataset(dataset, str(model), ("train", "val", "test"))
    changes = [f"storage={tmp_path / 'storage'}", f"model={model}"]
    changes += ["objectives=[lpips, lpips_late]", f"ray.address={ray_head.address}"]
    shipped = load_config(TuneConfig, str(REPOSITORY / "jobs" / "configs" / "wan14b" / "tune.yaml"), changes)
    with pytest.raises(ConfigError, match="no node of the cluster is of the pool A100-80G"):
        outline_study(shipped)
    a100 = POOLS["a100"]
    pool = {"num_cpus": 32, "num_gpus": 4, "resources": a100.resources, "labels": a100.labels}
    nodes = [ray_head.cluster.add_node(**pool)]
    try:
        told = outline_study(shipped).text()
        assert "at once     1 trial in this cluster; a trial takes 3 workers, the scorer one more GPU" in told
        assert "workers     3 of 8 CPUs and 1 GPUs each, on A100-80G" in told
        nodes.append(ray_head.cluster.add_node(**pool))
        assert "at once     2 trials in this cluster" in outline_study(shipped).text()
    finally:
        for node in nodes:
            ray_head.cluster.remove_node(node)
