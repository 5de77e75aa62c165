"""The hosts of a test: who reaches whom, and that nothing of them stays on the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.hosts.network import PREFIX, Host, Network, sweep, until, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beside,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

LISTEN = (
    "import socket\n"
    "with socket.create_server(('', 8265)) as s, socket.create_server(('', 6379)) as t:\n"
    "    print(socket.gethostname(), flush=True)\n"
    "    while True: s.accept()[0].sendall(b'hello')"
)


def machine() -> list[str]:
    """The machine's own links, routes and named namespaces."""
    asked = (["ip", "-o", "link"], ["ip", "route"], ["ip", "rule"], ["ip", "netns"])
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in asked]


@contextmanager
def listening(host: Host) -> Iterator[None]:
    process = host.start([sys.executable, "-c", LISTEN], subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().decode().strip() == host.name
    yield


def connect(host: Host, address: str, port: int) -> bytes:
    """What a port says first to this host; empty where it says nothing within a second."""

    def ask() -> bytes:
        with socket.create_connection((address, port), timeout=1) as s, contextlib.suppress(TimeoutError):
            return s.recv(5)
        return b""

    return host.call(ask)


def test_hosts_reach_each_other_and_the_laptop_reaches_one_port() -> None:
    before, others = machine(), {*psutil.Process().children(recursive=True)}
    with Network(["head", "a"], [8265], os.environ) as network:
        head, a, laptop = (network.hosts[name] for name in ("head", "a", "laptop"))
        with listening(head), listening(a):
            assert connect(a, head.address, 8265) == connect(laptop, head.address, 8265) == b"hello"
            assert connect(head, a.address, 6379) == b""
            with pytest.raises(OSError, match=r"route|prohibited|denied"):
                connect(laptop, head.address, 6379)
            network.cut("a")
            with pytest.raises(OSError, match=r"timed out|No route"):
                connect(head, a.address, 8265)
            assert connect(a, a.address, 8265) == b"hello", "the host itself goes on"
            network.mend("a")
            assert until(lambda: _answers(head, a), "the mended link", 20)
        assert machine() == before
        folder, processes = network.folder, {*psutil.Process().children(recursive=True)} - others
    assert machine() == before
    assert not folder.exists()
    assert processes
    assert not [p for p in processes if p.is_running()]


def _answers(one: Host, other: Host) -> bool:
    try:
        return connect(one, other.address, 8265) == b"hello"
    except OSError:
        return False


def test_a_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    before = machine()
    code = (
        "import os, subprocess, sys\n"
        "from tests.hosts.network import Network\n"
        "with Network(['head'], [], os.environ) as network:\n"
        "    network.hosts['head'].start(['sleep', '1000'], subprocess.DEVNULL)\n"
        "    print(network.folder, flush=True)\n"
        "    sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert folder.name.startswith(f"{PREFIX}-{owner.pid}-")
    below = until(lambda: len(p := psutil.Process(owner.pid).children(recursive=True)) >= 6 and p, "the host's program")
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    until(lambda: not [p for p in below if p.is_running()], "the end of all that it started", 20)
    sweep()
    assert not folder.exists()
    assert machine() == before
