"""A local Ray head with token auth, all of it on loopback, free ports and a temporary folder of its own.

It runs beside any other Ray on the host, and stopping it ends only its own processes. `cluster/local.py` has the
commands.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from cinesynth.session import interpreter_for_ray
from cluster.faults import PROCESS_TIMEOUTS

MARK = "CINESYNTH_HEAD"
"""The environment variable that every process of a head inherits. Its value is the head's folder."""
RAY_FOLDER = "ray"
"""Ray's temporary folder, in the head's."""


class HeadError(RuntimeError):
    """The head did not start."""


def free_ports(count: int) -> list[int]:
    """Loopback ports, all different, that nothing listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


class LocalHead:
    """A Ray head in a child process. Use it as a context manager.

    Args:
        num_cpus: logical CPUs that tasks and actors are scheduled on.
        object_store_bytes: size of the shared-memory object store.
        log: the file that takes the head's own output.
        timeout_s: seconds to wait for the dashboard to answer.
    """

    def __init__(
        self, num_cpus: int = 4, object_store_bytes: int = 500_000_000, log: Path | None = None, timeout_s: float = 90
    ) -> None:
        self.num_cpus = num_cpus
        self.object_store_bytes = object_store_bytes
        self.log = log
        self.timeout_s = timeout_s
        self.token = secrets.token_hex(32)
        gcs, dashboard = free_ports(2)
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self._folder: Path | None = None
        self._python = sys.executable
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def folder(self) -> Path:
        """All that the head writes, for as long as it runs. Its path marks the head's processes."""
        assert self._folder is not None
        return self._folder

    @property
    def pid(self) -> int:
        """Of the process that the others were started by, for as long as the head runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def variables(self) -> dict[str, str]:
        """What leads a client to the head: addresses and token."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            # Ray takes 127.0.0.1 for the host's outer address, and listens on all interfaces, unless it is told so.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a client process: token, addresses, and this interpreter first on the path."""
        return {
            **os.environ,
            "PATH": f"{Path(self._python).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **self.variables,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
            **PROCESS_TIMEOUTS,
        }

    def __enter__(self) -> LocalHead:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def start(self) -> None:
        """Start the processes; `wait_until_ready` and `stop` come next, whatever happens."""
        # Ray's Unix sockets lie below this folder, and a socket's path has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
        self._python = interpreter_for_ray(self._folder)
        gcs, dashboard = self.address.rsplit(":", 1)[1], self.dashboard.rsplit(":", 1)[1]
        client, agent, metrics, runtime_env, of_dashboard, of_autoscaler = free_ports(6)
        command = [
            *(self._python, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={self._folder / RAY_FOLDER}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}"),
            *(f"--num-cpus={self.num_cpus}", f"--object-store-memory={self.object_store_bytes}"),
            "--disable-usage-stats",
        ]
        # Ray records the host's newest cluster below RAY_TMPDIR: there it does not replace another head's record.
        environment = {**self.environment, "RAY_TMPDIR": str(self._folder), MARK: str(self._folder)}
        environment |= {"DASHBOARD_METRIC_PORT": str(of_dashboard), "AUTOSCALER_METRIC_PORT": str(of_autoscaler)}
        environment.pop("RAY_ADDRESS")
        self._output = open(self.log or os.devnull, "wb", opener=_for_the_owner)  # noqa: SIM115 - `stop` closes it
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Wait until the head takes jobs. Raises HeadError when it ends or stays silent for `timeout_s`."""
        assert self._process is not None
        deadline = time.monotonic() + self.timeout_s
        request = urllib.request.Request(
            f"{self.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise HeadError(f"the Ray head ended with code {self._process.returncode}; its log: {self.log}")
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise HeadError(f"the Ray dashboard did not answer within {self.timeout_s:.0f} s; its log: {self.log}")

    def wait(self) -> int:
        """Wait until the head ends by itself; returns its exit code, negative for the signal that killed it."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End the head and every process that it started, and no other."""
        process, self._process = self._process, None
        if process is not None:
            end_head(psutil.Process(process.pid) if process.poll() is None else None, self.folder)
            process.wait()
        if self._output is not None:
            self._output.close()
            self._output = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def end_head(first: psutil.Process | None, folder: Path) -> int:
    """End a head's processes and remove its folder; returns how many processes there were.

    Args:
        first: the process that started the others; None where it is gone already. Then those have no parent any more.
            They are known by the mark that they inherited, unless they changed their title, which overwrites it; such
            ones end by themselves.
        folder: of the head.
    """
    ours = set(marked_processes(folder))
    to_ask = ours
    with contextlib.suppress(psutil.NoSuchProcess):
        if first is not None:
            ours = ours | {first, *first.children(recursive=True)}
            to_ask = {first}  # it ends the others in their order
    for process in to_ask:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    end_processes(ours, patience_s=15)
    shutil.rmtree(folder, ignore_errors=True)
    return len(ours)


def end_processes(processes: Iterable[psutil.Process], patience_s: float) -> None:
    """Wait for processes that were asked to end, and kill those that have not ended after `patience_s`."""
    _, stragglers = psutil.wait_procs(list(processes), timeout=patience_s)
    for straggler in stragglers:
        with contextlib.suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(stragglers, timeout=5)


def marked_processes(folder: Path) -> list[psutil.Process]:
    """The processes that inherited the mark of the head in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def end_on_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, so that context managers clean up."""
    signal.signal(signal.SIGTERM, lambda *_: signal.default_int_handler(signal.SIGINT, None))
