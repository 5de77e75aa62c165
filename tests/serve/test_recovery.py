"""Processes die: a job that was accepted ends, and ends once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import Head
from tests.serve.service import STEPS, Service, processes_of, replica_pid, serving, until

pytestmark = pytest.mark.slow

GROUP = {"ranks": 2, "cpus_per_rank": 0.5}


@pytest.fixture
def service(ray_head: Head, tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, group=GROUP, drain_s=600) as service:
        yield service


@pytest.fixture
def nano(ray_head: Head, tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, drawing=False, group=GROUP) as service:
        yield service


def test_killed_ranks_coordinators_and_dispatchers_lose_no_video(service: Service, png: bytes) -> None:
    first = service.submit(png)
    until(lambda: service.pids(0) and service.pids(1) and service.state_kept(first), "the first attempt")
    until(lambda: service.job(first).progress, "its progress, which the next heartbeat tells")
    second = service.submit(png)

    os.kill(service.pids(1)[0], signal.SIGKILL)
    until(lambda: len(service.pids(1)) == 2, "the attempt of another group")
    assert set(service.pids(0)).isdisjoint(service.pids(1))
    assert len(set(service.pids(0))) == 2, "the whole group is made anew"
    job = service.job(first)
    assert (job.status, job.attempts) == ("in_progress", 1)
    assert job.progress >= 100 * 2 // STEPS, "progress does not go back"

    coordinator = replica_pid("Engine")
    os.kill(coordinator, signal.SIGKILL)
    until(lambda: len(service.pids(0)) == 3, "the attempt of another replica")
    assert replica_pid("Engine") != coordinator
    ranks = set(service.pids(0)) | set(service.pids(1))
    until(lambda: len(ranks & set(processes_of("RankProcess"))) == 2, "the end of the ranks of before", 20)

    os.kill(replica_pid("Dispatcher"), signal.SIGKILL)
    until(lambda: service.client.get("/readyz").status_code == 200, "the dispatcher's return")
    service.open()
    done = service.finished(first)
    assert (done.status, done.attempts) == ("completed", 2), "the attempt that ran meanwhile is the one that counts"
    assert service.finished(second).status == "completed"
    assert service.began() == [2, 0], "the first video went on from its state"
    for video_id in (first, second):
        assert service.frames(video_id).shape == (9, 64, 96, 3)
    assert len(list(service.config.results().iterdir())) == 2
    assert list(service.config.states().iterdir()) == []


def test_a_coordinator_that_hangs_is_killed_with_its_group_and_its_video_is_made_elsewhere(
    service: Service, png: bytes
) -> None:
    video = service.submit(png)
    until(lambda: service.pids(0) and service.pids(1) and service.state_kept(video), "the first attempt")
    hung = {replica_pid("Engine"), *service.pids(0), *service.pids(1)}
    os.kill(replica_pid("Engine"), signal.SIGSTOP)
    until(lambda: len(service.pids(0)) == 2 and len(service.pids(1)) == 2, "the attempt of another engine")
    until(lambda: not any(map(psutil.pid_exists, hung)), "the end of what hangs, which would hold its GPUs", 30)
    service.open()
    done = service.finished(video)
    assert (done.status, done.attempts, service.began()) == ("completed", 1, [2])


def test_a_video_of_nano_survives_a_killed_rank_and_is_the_same(nano: Service, png: bytes) -> None:
    whole = nano.submit(png, seed="5")
    assert nano.finished(whole).status == "completed"
    video = nano.submit(png, seed="5")
    until(lambda: nano.state_kept(video), "a kept state")
    os.kill(processes_of("RankProcess")[0], signal.SIGKILL)
    done = nano.finished(video)
    assert (done.status, done.attempts) == ("completed", 1)
    np.testing.assert_array_equal(nano.frames(video), nano.frames(whole))
