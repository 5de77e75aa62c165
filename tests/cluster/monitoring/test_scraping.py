"""Prometheus scrapes a cluster that prepares, trains, searches and serves: every panel's query finds something."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from cinesynth.config import TrainConfig
from cinesynth.pictures import png_bytes
from cinesynth.session import ray_session
from cinesynth.settings import parse_config
from cinesynth.telemetry import SERIES
from cinesynth.train.driver import train
from cluster.local import end_processes, free_ports
from tests.conftest import REPOSITORY, Head
from tests.prepared import prepare_clips
from tests.serve.service import Service, serving, until
from tests.small_search import small_search
from tune.study import tune_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MONITORING = REPOSITORY / "cluster" / "monitoring"
ONLY_ON_GPUS = {"GPU utilisation", "Model FLOPs utilisation"}
"""Panels that have nothing to show here."""
EARLY_S = 5.0
"""What is scraped within so many seconds was counted before: preparing and training take longer."""


class Prometheus:
    """The answers of a running one about the time since it started."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self.began = time.time()

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def finds(self, expr: str) -> bool:
        """Whether an expression had a number at some second: gauges go when their process ends."""
        found = self.ask("query_range", query=expr, start=self.began, end=time.time(), step=1)["result"]
        return any(not math.isnan(float(value)) for line in found for _, value in line["values"])


@pytest.fixture(scope="module")
def prometheus(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    temp = Path(ray_head.cluster.head_node.get_session_dir_path()).parent
    text = (MONITORING / "prometheus.yaml").read_text()
    assert "[/tmp/ray/prom_metrics_service_discovery.json]" in text
    text = text.replace("/tmp/ray/", f"{temp}/").replace("_interval: 10s", "_interval: 1s")
    (folder / "prometheus.yaml").write_text(text)
    shutil.copy(MONITORING / "alerts.yaml", folder)
    port = free_ports(1)[0]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                *(program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        until(lambda: _ready(found), "Prometheus")
        until(lambda: any(t["health"] == "up" for t in found.ask("targets")["activeTargets"]), "a scraped node")
        yield found
    finally:
        process.terminate()
        end_processes([psutil.Process(process.pid)], patience_s=10)
        process.wait()


def _ready(prometheus: Prometheus) -> bool:
    try:
        return prometheus.client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def busy(prometheus: Prometheus, ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Prometheus:
    """Prometheus, after each thing that has series was done."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "footage").mkdir()
    (folder / "footage" / "broken.mp4").write_bytes(b"not a video")
    storage = prepare_clips(ray_head, folder, 4, {"val": 0.3, "test": 0.0})
    values = {
        "name": "watched",
        "storage": str(storage),
        "ray": {"address": ray_head.address},
        "dataset": "clips",
        "optimizer": {"steps": 24, "lr": 1e-3, "batch_size": 2},
        "validation": {"every": 4, "sigmas": [0.5], "max_windows": 1},
        "checkpoint_every": 4,
    }
    config = parse_config(TrainConfig, values)
    with ThreadPoolExecutor(1) as pool, ray_session(config):
        killed = pool.submit(_kill_a_rank, ray_head, storage / "runs" / "watched" / "checkpoints")
        train(config)
        killed.result()
    shortest = {"rank": None, "alpha_over_rank": None, "lr": [1e-4, 1e-2]}
    tune_study(small_search(ray_head, storage, name="search", space=shortest, budget={"trials": 1}, final_seeds=0))
    with serving(folder, max_replicas=1, idle_s=30, group={"ranks": 1, "cpus_per_rank": 0.5}) as service:
        _serve(service)
    return prometheus


def _kill_a_rank(head: Head, checkpoints: Path) -> None:
    """Kill a worker of a training once it has written a checkpoint."""

    until(lambda: any(checkpoints.glob("step-*.json")), "a training's first checkpoint")
    os.kill(head.actors("RayTrainWorker")[0].pid, signal.SIGKILL)


def _serve(service: Service) -> None:
    """A video that loses its process and is completed, and one that fails, with a wait in the queue."""
    png = png_bytes(np.zeros((64, 96, 3), np.uint8))
    service.shut()
    first, second = service.submit(png), service.submit(png)
    (pid,) = until(service.pids, "the video's begin")
    os.kill(pid, signal.SIGKILL)
    for image in service.config.inputs().glob(f"{second}.*"):
        image.unlink()
    service.open()
    assert service.finished(first).status == "completed"
    assert service.finished(second).error_code == "invalid"
    time.sleep(3)  # until Ray exports the last counts, and Prometheus reads them


def test_every_series_is_scraped(busy: Prometheus) -> None:
    missing = set()
    for series in SERIES.values():
        name = series.exported + ("_count" if series.kind == "histogram" else "")
        found = busy.ask("series", **{"match[]": name, "start": busy.began})
        if not found:
            missing.add(series.name)
        told = {label for line in found for label in line}
        if found:  # Prometheus drops a label without a value, such as the reason of a video that was completed
            assert set(series.labels) <= told, f"{series.name}: {found}"
        assert not any(label.startswith("otel_") for label in told)
    assert missing == {"cinesynth_train_mfu_ratio"}  # the peak of a CPU is not known


@pytest.mark.parametrize("file", sorted(path.name for path in (MONITORING / "grafana").glob("*.json")))
def test_every_panel_has_something_to_show(busy: Prometheus, file: str) -> None:
    empty = []
    for panel in json.loads((MONITORING / "grafana" / file).read_text())["panels"]:
        if panel["title"] not in ONLY_ON_GPUS:
            empty += [target["expr"] for target in panel["targets"] if not busy.finds(target["expr"])]
    assert empty == []


def test_figures_are_those_of_the_run(busy: Prometheus) -> None:
    def values(expr: str) -> dict[str, list[tuple[float, float]]]:
        """Label to time and value of each second."""
        found = busy.ask("query_range", query=expr, start=busy.began, end=time.time(), step=1)["result"]
        return {
            next(iter(line["metric"].values()), ""): [(at, float(value)) for at, value in line["values"]]
            for line in found
        }

    def last(expr: str) -> dict[str, float]:
        return {label: line[-1][1] for label, line in values(expr).items()}

    def grown(expr: str) -> dict[str, float]:
        """By how much counters grew: other tests of this session may have counted before."""
        lines = {
            label: line[-1][1] - (line[0][1] if line[0][0] < busy.began + EARLY_S else 0)
            for label, line in values(expr).items()
        }
        return {label: value for label, value in lines.items() if value}

    assert last('max by (run) (ray_cinesynth_train_steps_wanted{run="watched"})') == {"watched": 24}
    assert last('max by (run) (ray_cinesynth_train_step{run="watched"})')["watched"] <= 24
    assert last('sum(ray_cinesynth_prepare_rejects{run="clips"})')[""] >= 1
    assert grown('sum(ray_cinesynth_train_restarts_total{run="watched"})') == {"": 1}
    assert last('sum by (state) (ray_cinesynth_tune_trials{study="search"})')["complete"] == 1
    assert last('sum(ray_cinesynth_tune_trials_wanted{study="search"})') == {"": 1}
    assert set(last('max by (objective) (ray_cinesynth_tune_best{study="search"})')) == {"lpips", "lpips_late"}
    assert grown("sum by (outcome) (ray_cinesynth_serve_videos_total)") == {"completed": 1, "failed": 1}
    assert grown("sum by (reason) (ray_cinesynth_serve_leases_lost_total)") == {"rank_lost": 1}
    assert grown("sum(ray_cinesynth_serve_made_video_seconds_total)") == {"": 0.5}  # 9 frames, 16 a second


def test_no_alert_fires_of_a_run_that_went_well(busy: Prometheus) -> None:
    fired = busy.ask("query", query='ALERTS{alertname=~"CinesynthNoTrainingStep|CinesynthVideosWait"}')["result"]
    assert fired == []
    rules = busy.ask("rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}
