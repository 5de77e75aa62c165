"""Shared fixtures: one Ray cluster for the whole session, with token auth, a dashboard and free ports."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cinesynth.session import interpreter_for_ray
from cluster.local import end_processes, free_ports

# Set before anything imports Ray, torch or a hub library.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RAY_ADDRESS", None)

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Head:
    """Where the session's Ray cluster is."""

    address: str
    dashboard: str
    cluster: Any

    def actors(self, class_name: str) -> list[Any]:
        """Living actors whose class has this in its name, in detail."""
        from ray.util.state import list_actors

        found = list_actors(self.dashboard, filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
        return [actor for actor in found if class_name in actor.class_name]


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """The session's cluster (`ray.cluster_utils.Cluster`): 4 logical CPUs, 1 GB object store, connected."""
    import ray
    from ray.cluster_utils import Cluster

    # Unix socket paths are limited to 107 characters, so not below pytest's own long paths.
    folder = tempfile.mkdtemp(prefix="cs-", dir="/tmp")
    # Ray records the newest cluster of the host below this folder: another head's record stays as it is.
    os.environ["RAY_TMPDIR"] = folder
    python, sys.executable = sys.executable, interpreter_for_ray(Path(folder))
    gcs, dashboard, agent, metrics, client = free_ports(5)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"
    os.environ["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] = "1"
    os.environ["RAY_metrics_report_interval_ms"] = "2000"  # noqa: SIM112  # Ray spells it so; 10 s by default
    others = {*psutil.Process().children(recursive=True)}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "object_store_memory": 1_000_000_000,
            "gcs_server_port": gcs,
            "temp_dir": f"{folder}/ray",
            "include_dashboard": True,
            "dashboard_port": dashboard,
            "dashboard_agent_listen_port": agent,
            "metrics_export_port": metrics,
            "ray_client_server_port": client,
        },
    )
    try:
        ray.init(address=cluster.address, log_to_driver=True, logging_level="warning")
        yield Head(cluster.address, f"http://127.0.0.1:{dashboard}", cluster)
    finally:
        ray.shutdown()
        started = {*psutil.Process().children(recursive=True)} - others
        cluster.shutdown()
        end_processes(started, patience_s=15)
        sys.executable = python
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def storage(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage location with the small dataset `clips`, to which tests add runs of their own names."""
    from tests.prepared import prepare_clips

    return prepare_clips(ray_head, tmp_path_factory.mktemp("clips"), 9, {"val": 0.25, "test": 0.25})


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What this process syncs ("file", "folder") and gives its name ("replace"), in order."""
    done: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("folder" if path.is_dir() else "file", path))
        fsync(descriptor)

    def replacing(source: Path, target: Path) -> None:
        done.append(("replace", Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    return done


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the session's cluster: `make test` runs that beside the rest, in a process of its own."""
    for item in items:
        if "ray_head" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A library may have given this process real-time priority: all that it started has starved the rest."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        print("\nerror: a test left this process with real-time priority (os.sched_getscheduler)", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Where CINESYNTH_NO_SKIP is set (the CI script sets it), a skipped test has failed."""
    report = yield
    if report.skipped and os.environ.get("CINESYNTH_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report
