"""Engines follow the queue, and what befalls the service while they do."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from sqlalchemy import make_url

from cinesynth.storage import sha256_file
from serve.run import deploy
from serve.sweep import Sweeper
from tests.conftest import Head
from tests.serve.service import Service, processes_of, replica_pid, serving, until

pytestmark = pytest.mark.slow

IDLE_S, DRAIN_S = 20.0, 2.0
"""Without a Dispatcher Serve knows of no work: an engine idles for longer than one takes to restart."""
ENGINE = "#Engine#"


@pytest.fixture(scope="module")
def service(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"max_replicas": 2, "idle_s": IDLE_S, "drain_s": DRAIN_S, "group": {"ranks": 1, "cpus_per_rank": 0.5}}
    with serving(tmp_path_factory.mktemp("scaling"), **settings) as service:
        yield service


@pytest.fixture(autouse=True)
def shut(service: Service) -> Iterator[None]:
    service.shut()
    yield
    service.open()


def until_one_engine_is_left() -> None:
    """Wait for engines of former tests that idle."""
    until(lambda: len(processes_of(ENGINE)) < 2, "one engine at most")


def test_engines_follow_the_load_and_go_back_to_none(service: Service, png: bytes) -> None:
    assert processes_of(ENGINE) == []
    videos = [service.submit(png) for _ in range(5)]
    until(lambda: len(set(service.pids())) == 2, "two engines at work")
    assert len(processes_of(ENGINE)) == 2
    service.open()
    for video in videos:
        done = service.finished(video)
        assert (done.status, done.attempts) == ("completed", 0)
        assert done.sha256 == sha256_file(service.config.results() / str(done.result))
    until(lambda: not processes_of(ENGINE), "no engine without work")


def test_a_restarted_dispatcher_keeps_an_engine_that_works_for_longer_than_it_would_idle(
    service: Service, png: bytes
) -> None:
    video = service.submit(png)
    (pid,) = until(service.pids, "the video's begin")
    os.kill(replica_pid("Dispatcher"), signal.SIGKILL)
    until(lambda: service.client.get("/readyz").status_code == 200, "the dispatcher's return")
    time.sleep(IDLE_S + DRAIN_S + 5)
    service.open()
    assert service.finished(video).status == "completed"
    assert (service.pids(), service.began(), service.job(video).attempts) == ([pid], [0], 0), "in one go"


def test_a_killed_controller_of_serve_costs_no_video(service: Service, png: bytes) -> None:
    video = service.submit(png)
    (pid,) = until(service.pids, "the video's begin")
    (controller,) = processes_of("ServeController")
    os.kill(controller, signal.SIGKILL)
    until(lambda: (found := processes_of("ServeController")) and found != [controller], "another controller")
    service.open()
    assert service.finished(video).status == "completed"
    assert service.pids() == [pid]


def test_deploying_the_same_again_restarts_nothing(service: Service, png: bytes) -> None:
    until_one_engine_is_left()
    video = service.submit(png)
    until(service.pids, "the video's begin")
    before = sorted(processes_of("#"))
    deploy(service.config, service.groups)
    assert sorted(processes_of("#")) == before
    service.open()
    assert service.finished(video).status == "completed"


def test_a_new_deployment_takes_an_engine_away_at_no_cost_and_another_goes_on(service: Service, png: bytes) -> None:
    until_one_engine_is_left()
    video = service.submit(png)
    until(lambda: service.state_kept(video), "a kept state")
    (engine,) = processes_of(ENGINE)
    deploy(service.config.model_copy(update={"ttl_s": 3600.0}), service.groups)
    until(lambda: len(service.pids()) == 2, "another engine's attempt")
    assert engine not in processes_of(ENGINE)
    service.open()
    done = service.finished(video)
    assert (done.status, done.attempts, service.began()) == ("completed", 0, [2])


def test_a_deleted_video_stops_and_the_engine_takes_the_next(service: Service, png: bytes) -> None:
    first = service.submit(png)
    until(lambda: service.state_kept(first), "a kept state")
    second = service.submit(png)
    assert service.client.delete(f"/v1/videos/{first}").json()["deleted"]
    until(lambda: service.client.get(f"/v1/videos/{first}").status_code == 404, "its end")
    service.open()
    assert service.finished(second).status == "completed"
    names = [path.name for path in service.config.results().iterdir()]
    assert not [name for name in names if name.startswith(first)]
    Sweeper(service.store, service.config.resolved()).sweep()  # of a state that was being written meanwhile
    assert not service.state_kept(first)


def test_a_database_that_another_process_locks_costs_no_video(service: Service, png: bytes) -> None:
    video = service.submit(png)
    until(service.pids, "the video's begin")
    other = sqlite3.connect(str(make_url(service.config.resolved().database_url()).database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    service.open()
    time.sleep(5)  # the engine is done, and cannot tell
    assert service.client.get(f"/v1/videos/{video}").json()["status"] == "in_progress", "reads go on"
    other.execute("ROLLBACK")
    other.close()
    done = service.finished(video)
    assert (done.status, done.attempts) == ("completed", 0)


def test_a_stopped_rank_and_a_killed_ingress_cost_no_video(service: Service, png: bytes) -> None:
    video = service.submit(png)
    until(lambda: service.state_kept(video), "a kept state")
    os.kill(service.pids()[0], signal.SIGSTOP)
    os.kill(replica_pid("Ingress"), signal.SIGKILL)
    until(lambda: len(service.pids()) == 2, "another group's attempt")
    assert not psutil.pid_exists(service.pids()[0]), "a stopped process would hold its GPU"
    until(lambda: service.client.get("/readyz").status_code == 200, "the ingress' return")
    service.open()
    done = service.finished(video)
    assert (done.status, done.attempts, service.began()) == ("completed", 1, [2])


def test_a_request_whose_answer_was_lost_made_one_video(service: Service, png: bytes) -> None:
    """The Dispatcher dies once the video is in the table: whether its answer left or not, the key finds the video."""
    service.open()
    before = service.store.ids()

    def ask() -> httpx.Response:
        files, headers = {"input_reference": ("first.png", png)}, {"Idempotency-Key": "lost"}
        return service.client.post("/v1/videos", data={"prompt": "a bar"}, files=files, headers=headers)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        (video,) = until(lambda: service.store.ids() - before, "the commit")
        os.kill(replica_pid("Dispatcher"), signal.SIGKILL)
        assert answer.result().status_code in (200, 503)
    again = until(lambda: (a := ask()).status_code == 200 and a, "an answer")
    assert again.json()["id"] == video
    assert service.store.ids() - before == {video}
    assert service.finished(video).status == "completed"


def test_clients_that_go_away_hold_nothing(service: Service, png: bytes) -> None:
    service.open()
    frames = set(service.config.inputs().iterdir())
    host, port = service.client.base_url.host, service.client.base_url.port
    key = service.client.headers["authorization"]
    for _ in range(2 * service.config.uploads.per_key):
        with socket.create_connection((host, port)) as connection:
            connection.sendall(
                f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}\r\nContent-Length: 90000\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
            )
    video = service.submit(png)
    for _ in range(3):
        with service.client.stream("GET", f"/v1/videos/{video}/events") as events:
            next(events.iter_lines())
    assert service.finished(video).status == "completed"
    assert {path.name for path in set(service.config.inputs().iterdir()) - frames} <= {service.job(video).image}
