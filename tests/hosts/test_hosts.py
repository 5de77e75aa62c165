"""A cluster of hosts: jobs come from outside, and a host that is cut off without a word costs time and nothing else.

One cluster for the whole module. Hosts that a test cut off are back before the next one begins.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from cinesynth.data.video import read_video
from cinesynth.pictures import png_bytes
from cinesynth.runs import read_events, read_result
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.storage import Storage
from cinesynth.wan.card import read_card
from serve.dispatch import open_store
from tests.conftest import REPOSITORY
from tests.hosts.cluster import GCS, HTTP, HostCluster
from tests.hosts.deploy import configuration
from tests.hosts.network import until, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.hosts,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

STEPS = 16
TRAINING = {
    "workers": 2,
    "cpus_per_worker": 2,  # a host holds one worker
    "max_failures": 3,
    "checkpoint_every": 1,
    "lora": {"rank": 4, "alpha": 8},
    "optimizer": {"steps": STEPS, "lr": 1e-2, "batch_size": 2},
    "validation": {"every": STEPS, "sigmas": [0.5], "max_windows": 1},
}
NOTICED_S = 45.0
"""Within so many seconds a host that was cut off is given up: 18 by the time-outs, and what a busy machine adds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[HostCluster]:
    with HostCluster(["a", "b"], cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def storage(cluster: HostCluster) -> Path:
    """The folder that all hosts see."""
    folder = cluster.network.folder / "shared"
    write_scripted_clips(folder / "footage", 8, seed=5)
    return folder / "storage"


@pytest.fixture(scope="module")
def pipeline(cluster: HostCluster, storage: Path) -> dict[str, Any]:
    """The result of the pipeline `tiny`, which the laptop submitted."""
    config = {
        "name": "tiny",
        "storage": str(storage),
        "prepare": {
            "footage": [{"path": str(storage.parent / "footage")}],
            "window": {"num_frames": 13, "sizes": "96x64", "max_per_shot": 1},
            "split": {"val": 0.2, "test": 0.4, "salt": "tiny"},
        },
        "style": TRAINING,
        "generate": {"split": "test", "sampler": {"steps": 2, "guidance_scale": 1.0}, "max_windows": 2},
        "evaluate": {"metrics": ["lpips"]},
        "publish": {"adapter_name": "tiny"},
    }
    file = storage.parent / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    log = storage.parent / "pipeline.log"
    told = cluster.finished(cluster.submit("jobs.pipeline", "--config", str(file), log=log), log)
    assert "pipeline tiny: complete" in told
    return read_result(Storage.open(storage), "tiny")


def losses(storage: Path, run: str) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_events(Storage.open(storage).child("runs", run)) if "loss" in e}


def reached(storage: Path, run: str) -> int:
    """The step of the newest whole checkpoint."""
    made = (storage / "runs" / run / "checkpoints").glob("step-*.json")
    return max((int(path.stem.removeprefix("step-")) for path in made), default=0)


def train(cluster: HostCluster, storage: Path, name: str, log: Path) -> subprocess.Popen[bytes]:
    """Submit the pipeline's style stage under another name."""
    settings = [f"{key}={_yaml_line(value)}" for key, value in TRAINING.items()]
    return cluster.submit(
        "jobs.train", f"name={name}", f"storage={storage}", "dataset=tiny-prepare", *settings, log=log
    )


def test_the_pipeline_from_outside_makes_all_on_hosts_that_the_laptop_does_not_reach(
    cluster: HostCluster, storage: Path, pipeline: dict[str, Any]
) -> None:
    assert pipeline["status"] == "complete"
    assert sorted(losses(storage, "tiny-style")) == list(range(1, STEPS + 1))
    assert read_card(storage / "runs" / "tiny-style" / "adapter").step == STEPS
    for arm in ("base", "adapter"):
        videos = sorted((storage / "runs" / "tiny-generate" / "videos" / arm).glob("*.mkv"))
        assert [read_video(path)[0].shape for path in videos] == [(13, 64, 96, 3)] * 2
    assert Path(pipeline["outputs"]["report"]).stat().st_size > 10_000
    worker = cluster.network.hosts["a"].address
    with pytest.raises(httpx.ConnectError, match=r"route|prohibited|denied"):
        cluster.laptop.call(lambda: httpx.get(f"http://{worker}:52365", timeout=2, trust_env=False).status_code)


def test_training_goes_on_without_a_host_that_was_cut_off_and_leaves_the_same_adapter(
    cluster: HostCluster, storage: Path, pipeline: dict[str, Any]
) -> None:
    log = storage.parent / "cut.log"
    job = train(cluster, storage, "cut", log)
    until(lambda: reached(storage, "cut") >= 2 or job.poll() is not None, "two steps", 300)
    assert job.poll() is None, log.read_text()
    host = next(name for name in cluster.hosts_of("RayTrainWorker") if name in cluster.workers)
    started = time.monotonic()
    cluster.network.cut(host)
    at = reached(storage, "cut")
    assert at < STEPS - 2, "the host was cut off in mid-training"
    until(lambda: host not in cluster.nodes(), "the end of the host's node", 120)
    noticed = time.monotonic() - started
    until(lambda: reached(storage, "cut") > at + 1, "steps of the new workers", 300)
    again = time.monotonic() - started
    told = cluster.finished(job, log)
    print(f"noticed after {noticed:.0f} s, trained again after {again:.0f} s")
    assert noticed < NOTICED_S
    assert told.count("they start again (failure 1 of at most 3 without progress)") == 1, told
    result = read_result(Storage.open(storage), "cut")
    assert sorted(losses(storage, "cut")) == list(range(1, STEPS + 1))
    assert losses(storage, "cut") == losses(storage, "tiny-style")
    assert result["figures"]["adapter_sha256"] == pipeline["figures"]["style/adapter_sha256"]
    cluster.network.mend(host)
    until(lambda: host in cluster.nodes(), "the mended host's return", 180)


def _yaml_line(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


class Client:
    """Asks the service from the laptop, again and again where it answers with a server's error, as OpenAI's does."""

    def __init__(self, cluster: HostCluster, key: str) -> None:
        self.cluster = cluster
        self.headers = {"Authorization": f"Bearer {key}"}
        self.url = f"http://{cluster.head.address}:{HTTP}"
        self.longest_s = 0.0
        """The longest that an answer took, failures before it included."""

    def ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        started = time.monotonic()

        def once() -> httpx.Response | None:
            try:
                with httpx.Client(base_url=self.url, headers=self.headers, timeout=5, trust_env=False) as client:
                    answer = client.request(method, path, **content)
            except httpx.HTTPError as e:
                print(f"{time.monotonic() - started:.1f} s: {method} {path}: {e!r}")
                return None
            if answer.status_code >= 500:
                print(f"{time.monotonic() - started:.1f} s: {method} {path}: {answer.status_code} {answer.text[:200]}")
                return None
            return answer

        answer = until(lambda: self.cluster.laptop.call(once), f"{method} {path}", 180)
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        assert answer is not None
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture(scope="module")
def service(cluster: HostCluster) -> tuple[Path, Client]:
    """The folder of a service with an engine on each of two hosts, and its client on the laptop."""
    folder = cluster.network.folder / "service"
    folder.mkdir()
    log = folder / "deploy.log"
    arguments = [str(folder), f"{cluster.head.address}:{GCS}"]
    with open(log, "wb") as out:
        deploying = cluster.head.start([sys.executable, "-m", "tests.hosts.deploy", *arguments], out, cwd=REPOSITORY)
    assert deploying.wait(400) == 0, log.read_text()[-3000:]
    key = log.read_text().split("key ")[-1].split()[0]
    until(lambda: sorted(set(cluster.hosts_of("RankProcess"))) == ["a", "b"], "an engine on each host", 300)
    return folder, Client(cluster, key)


def started_on(folder: Path) -> list[str]:
    """Hosts that began a video, in order."""
    path = folder / "gate" / "hosts"
    return path.read_text().split() if path.exists() else []


def test_a_video_of_an_engine_that_was_cut_off_is_made_elsewhere_and_only_once(
    cluster: HostCluster, service: tuple[Path, Client]
) -> None:
    """The link comes back while the engine that was cut off still works on the video, or after it has ended."""
    folder, client = service
    store, results = open_store(configuration(folder)), folder / "storage" / "serve" / "results"
    video = submit(client)
    until(lambda: any((folder / "storage/serve/states").glob(f"{video}.*")), "a kept state", 120)
    (host,) = started_on(folder)
    cluster.network.cut(host)
    cut = time.monotonic()
    until(lambda: len(started_on(folder)) == 2, "the attempt of the other engine", 120)
    elsewhere = time.monotonic() - cut
    assert started_on(folder)[1] != host
    (folder / "gate" / "go").touch()
    until(lambda: store.get(video).status == "completed", "the end of the video", 120)
    done = store.get(video)
    until(lambda: len(list(results.glob(f"{video}.*.mp4"))) == 2, "the video of the engine that is cut off", 60)
    cluster.network.mend(host)
    until(lambda: host in cluster.nodes() and cluster.hosts_of("RankProcess").count(host) == 1, "its return", 240)
    print(f"begun elsewhere after {elsewhere:.1f} s; the longest answer took {client.longest_s:.1f} s")
    assert store.get(video) == done, "the engine that was cut off has changed nothing"
    assert done.result == f"{video}.2.mp4"
    assert done.attempts == 0, "the host's loss is no fault of the job's"
    content = client.ask("GET", f"/v1/videos/{video}/content").content
    assert hashlib.sha256(content).hexdigest() == done.sha256
    began = [int(line) for line in (folder / "gate" / "began").read_text().split()]
    assert sorted(began) == [0, 2], "it went on from the state that was kept"


def test_a_host_that_is_lost_for_good_costs_clients_a_delay(cluster: HostCluster, service: tuple[Path, Client]) -> None:
    folder, client = service
    for path in (folder / "gate").iterdir():
        path.unlink()
    client.longest_s = 0.0
    videos = [submit(client) for _ in range(2)]
    until(lambda: sorted(started_on(folder)) == ["a", "b"], "both engines at work", 120)
    cluster.network.cut("a")
    cut = time.monotonic()
    asked = []
    (folder / "gate" / "go").touch()
    while len(asked) < 3 or any(state != "completed" for state in asked[-1]):
        asked.append([client.ask("GET", f"/v1/videos/{video}").json()["status"] for video in videos])
        assert "failed" not in asked[-1]
        assert time.monotonic() - cut < 300
        time.sleep(0.5)
    print(f"both after {time.monotonic() - cut:.1f} s; the longest answer took {client.longest_s:.1f} s")
    until(lambda: "a" not in cluster.nodes(), "the end of the host's node", 120)
    for video in videos:
        assert client.ask("GET", f"/v1/videos/{video}/content").content[4:8] == b"ftyp"
    cluster.network.mend("a")


def test_a_lost_head_costs_what_was_under_way_and_the_same_command_goes_on(
    cluster: HostCluster, storage: Path, pipeline: dict[str, Any]
) -> None:
    """Last, as all that runs ends with the head. Before, training waits for the room that the service has."""
    until(lambda: len(cluster.nodes()) == 3, "all hosts", 240)
    log = storage.parent / "headless.log"
    job = train(cluster, storage, "headless", log)
    if cluster.hosts_of("RankProcess"):
        waits = "2 x 2 CPU; free are"
        until(lambda: waits in log.read_text() or job.poll() is not None, "a job that waits to say so", 120)
        assert waits in log.read_text()
        cluster.delete_service()
    until(lambda: reached(storage, "headless") >= 2 or job.poll() is not None, "two steps", 300)
    assert job.poll() is None, log.read_text()
    cluster.lose_head()
    lost = time.monotonic()
    assert job.wait(180) != 0, "the laptop is told"
    assert not (storage / "runs" / "headless" / "result.json").exists()
    assert reached(storage, "headless") < STEPS
    cluster.start_head()
    until(lambda: len(cluster.nodes()) == 3, "the workers' return to the new head", 240)
    told = cluster.finished(train(cluster, storage, "headless", log), log)
    print(f"complete {time.monotonic() - lost:.0f} s after the head was lost")
    assert "train headless: complete" in told
    assert losses(storage, "headless") == losses(storage, "tiny-style")
    figures = read_result(Storage.open(storage), "headless")["figures"]
    assert figures["adapter_sha256"] == pipeline["figures"]["style/adapter_sha256"]


def submit(client: Client) -> str:
    """The id of a queued video."""
    files = {"input_reference": ("first.png", png_bytes(np.full((64, 96, 3), 128, np.uint8)))}
    return str(client.ask("POST", "/v1/videos", data={"prompt": "a bar", "num_frames": "9"}, files=files).json()["id"])
