"""A local Ray head with token auth, a dashboard on loopback, free ports and a temporary folder of its own.

`python -m cluster.local` runs one until Ctrl-C and prints how to use it. It runs beside any other Ray on the host, and
stopping it ends only its own processes.
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

_MARK = "CINESYNTH_HEAD"
"""The environment variable that every process of a head inherits. Its value is the head's folder."""


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
    def environment(self) -> dict[str, str]:
        """The environment of a client process: token, addresses, and this interpreter first on the path."""
        return {
            **os.environ,
            "PATH": f"{Path(self._python).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # three in a row: a dead proxy is replaced after seconds
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
        }

    def __enter__(self) -> LocalHead:
        # Ray's Unix sockets lie below this folder, and a socket's path has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
        self._python = interpreter_for_ray(self._folder)
        gcs, dashboard = self.address.rsplit(":", 1)[1], self.dashboard.rsplit(":", 1)[1]
        client, agent, metrics, runtime_env = free_ports(4)
        command = [
            *(self._python, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={self._folder / 'ray'}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}"),
            *(f"--num-cpus={self.num_cpus}", f"--object-store-memory={self.object_store_bytes}"),
            "--disable-usage-stats",
        ]
        # Ray records the host's newest cluster below RAY_TMPDIR: there it does not replace another head's record.
        environment = {**self.environment, "RAY_TMPDIR": str(self._folder), _MARK: str(self._folder)}
        environment.pop("RAY_ADDRESS")
        self._output = open(self.log or os.devnull, "wb")
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> None:
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
            # A head that died by itself leaves processes without a parent. They are known by the mark that they
            # inherited, unless they changed their title, which overwrites it.
            ours = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            end_processes({*ours, *_marked(str(self._folder))}, patience_s=15)
            process.wait()
        if self._output is not None:
            self._output.close()
            self._output = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def end_processes(processes: Iterable[psutil.Process], patience_s: float) -> None:
    """Wait for processes that were asked to end, and kill those that have not ended after `patience_s`."""
    _, stragglers = psutil.wait_procs(list(processes), timeout=patience_s)
    for straggler in stragglers:
        with contextlib.suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(stragglers, timeout=5)


def _marked(mark: str) -> list[psutil.Process]:
    """The processes that inherited the mark of the head in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def main() -> None:
    """Run a head until Ctrl-C."""
    with LocalHead() as head:
        print("A Ray head is running; Ctrl-C stops it. In another terminal:")
        for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            print(f"  export {key}={head.environment[key]}")
        print("  ray job submit --working-dir . -- python -m jobs.pipeline --config jobs/configs/nano/pipeline.yaml \\")
        print("      storage=$PWD/storage 'prepare.footage=[{path: /folder/of/videos}]'")
        print(f"Dashboard: {head.dashboard} (it asks for the token above)", flush=True)
        try:
            code = head.wait()
        except KeyboardInterrupt:
            print("Stopping.")
            return
    raise SystemExit(f"The head ended by itself, with exit code {code}; start another one.")


def end_on_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, so that context managers clean up."""
    signal.signal(signal.SIGTERM, lambda *_: signal.default_int_handler(signal.SIGINT, None))


if __name__ == "__main__":
    end_on_sigterm()
    main()
