"""A Ray cluster whose nodes are hosts of a `Network`, used from a host outside as the documentation says."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from cinesynth.session import interpreter_for_ray
from cluster.faults import HEAD_TIMEOUTS
from tests.conftest import REPOSITORY
from tests.hosts.network import OUTSIDE, Host, Network, until

HEAD = "head"
DASHBOARD, GCS, HTTP = 8265, 6379, 8000
START_S = 600.0
_AGAIN = 'while true; do "$@"; sleep 1; done'
"""A node whose Ray ended starts again, as a supervisor or KubeRay would have it."""


class HostCluster:
    """A head and workers, each on a host of its own. A context manager.

    Args:
        workers: names of the hosts beside the head.
        cpus: logical CPUs of each host, the head's too.
    """

    def __init__(self, workers: list[str], cpus: int) -> None:
        self.workers, self.cpus = workers, cpus
        self.token = secrets.token_hex(16)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **HEAD_TIMEOUTS,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # On a machine that is busy, a process takes its time to start, and none is to start that nobody needs.
            "RAY_worker_register_timeout_seconds": "600",
            "RAY_prestart_worker_first_driver": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),  # the package is installed on every host
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.network = Network([HEAD, *workers], [DASHBOARD, HTTP], environment)

    def __enter__(self) -> HostCluster:
        self.network.__enter__()
        try:
            self.ray = [interpreter_for_ray(self.network.folder), "-m", "ray.scripts.scripts"]
            self.start_head()
            for name in self.workers:  # one after the other: a raylet whose agents take 15 s to start gives up
                self._start(name, [f"--address={self.head.address}:{GCS}", '--labels={"host": "worker"}'])
                until(lambda name=name: name in self.nodes(), f"the node of {name}", START_S)
        except BaseException:
            self._show_logs()
            self.network.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.network.__exit__(kind, error, trace)

    @property
    def head(self) -> Host:
        return self.network.hosts[HEAD]

    @property
    def laptop(self) -> Host:
        return self.network.hosts[OUTSIDE]

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD}"

    def start_head(self) -> None:
        """Start the head and wait for its dashboard."""
        self._start(HEAD, ["--head", f"--port={GCS}", "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD}"])
        until(lambda: HEAD in self.nodes(), "the head", START_S)

    def lose_head(self) -> None:
        """End everything on the head's host at once."""
        self.head.start(["bash", "-c", "kill -9 -1"], subprocess.DEVNULL).wait()

    def _start(self, name: str, arguments: list[str]) -> None:
        host = self.network.hosts[name]
        command = [
            *(*self.ray, "start", "--block", "--disable-usage-stats", *arguments),
            *(f"--node-ip-address={host.address}", f"--temp-dir={host.environment['TMPDIR']}/ray"),
            *(f"--num-cpus={self.cpus}", "--object-store-memory=200000000"),
        ]
        with open(self.network.folder / f"{name}.log", "ab") as log:
            host.start(["bash", "-c", _AGAIN, "node", *command], log)

    def ask(self, path: str) -> Any:
        """What the dashboard answers the laptop; None where it does not."""
        request = urllib.request.Request(f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {self.token}"})

        def get() -> Any:
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.load(answer)
            except (urllib.error.URLError, OSError, ValueError):
                return None

        return self.laptop.call(get)

    def _state(self, path: str) -> list[dict[str, Any]]:
        answer = self.ask(path)
        return answer["data"]["result"]["result"] if answer else []

    def nodes(self) -> dict[str, str]:
        """Living hosts: the id of each one's node."""
        names = {host.address: name for name, host in self.network.hosts.items()}
        alive = [node for node in self._state("/api/v0/nodes?limit=100") if node["state"] == "ALIVE"]
        return {names[node["node_ip"]]: node["node_id"] for node in alive}

    def hosts_of(self, actor: str) -> list[str]:
        """Hosts of the living actors whose class or name holds this."""
        names = {node_id: name for name, node_id in self.nodes().items()}
        actors = [a for a in self._state("/api/v0/actors?detail=true&limit=1000") if a["state"] == "ALIVE"]
        return [names.get(a["node_id"], "lost") for a in actors if actor in f"{a['class_name']} {a['name']}"]

    def submit(self, *entrypoint: str, log: Path) -> subprocess.Popen[bytes]:
        """`ray job submit` on the laptop, which only knows the dashboard."""
        laptop = self.laptop
        laptop.environment["RAY_API_SERVER_ADDRESS"] = self.dashboard
        command = [*self.ray, "job", "submit", "--working-dir", ".", "--", "python", "-m", *entrypoint]
        with open(log, "ab") as out:
            return laptop.start(command, out, cwd=REPOSITORY)

    def delete_service(self) -> None:
        """Take the service down, as docs/serving.md has it."""
        command = [sys.executable, "-m", "serve.run", "--delete", "--address", f"{self.head.address}:{GCS}"]
        with open(self.network.folder / "delete.log", "wb") as out:
            code = self.head.start(command, out, cwd=REPOSITORY).wait(120)
        assert code == 0, (self.network.folder / "delete.log").read_text()

    def finished(self, job: subprocess.Popen[bytes], log: Path, timeout_s: float = 600) -> str:
        """The log of a job, once it has succeeded."""
        code = job.wait(timeout_s)
        told = log.read_text(errors="replace")
        assert code == 0, told[-5000:]
        return told

    def _show_logs(self) -> None:
        for name in (HEAD, *self.workers):
            path = self.network.folder / f"{name}.log"
            if path.exists():
                print(f"--- {name}\n{path.read_text(errors='replace')[-3000:]}")
