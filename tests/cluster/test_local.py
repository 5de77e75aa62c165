"""Our local head: protected, beside another one, and gone without a trace when stopped."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from cluster.local import LocalHead
from tests.conftest import Head


def processes_of_the_head() -> list[psutil.Process]:
    """The process that this one started as a local head, and those below it."""
    (process,) = [p for p in psutil.Process().children() if "start" in p.cmdline() and "--head" in p.cmdline()]
    return [process, *process.children(recursive=True)]


@pytest.mark.slow
def test_a_head_starts_beside_another_refuses_strangers_and_stops_only_itself(ray_head: Head, tmp_path: Path) -> None:
    import ray

    with LocalHead(num_cpus=1, log=tmp_path / "head.log") as head:
        started = processes_of_the_head()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=5)
        assert refused.value.code == 401
        assert head.address != ray_head.address
    assert not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert ray.get(ray.put(1)) == 1  # the other head still works


@pytest.mark.slow
@pytest.mark.own_ray
def test_a_head_that_dies_leaves_no_process(tmp_path: Path) -> None:
    head = LocalHead(num_cpus=1, log=tmp_path / "head.log")
    with head:
        process, *started = processes_of_the_head()
        process.kill()
        process.wait()
    assert started
    assert not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
