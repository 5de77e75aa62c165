"""Hosts on one machine: each has a network, a process table, a hostname and a temporary folder of its own.

All hosts lie inside the namespaces of one process, the switch: it reads a pipe of ours, and when that closes, the
kernel ends everything below it. So nothing is left behind, also where the test's own process was killed with -9: no
namespace and no link has a name outside, and the machine's own interfaces and routes are never touched.

    laptop 10.77.1.1 --- lap [switch: routes few ports] lan --- 10.77.0.1 head, 10.77.0.2 a, ...
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

import psutil

T = TypeVar("T")

PREFIX = "csh"
OUTSIDE = "laptop"
_CLONE_NEWNET = 0x40000000

_SWITCH = """
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add lan type bridge
ip link set lan up
ip addr add 10.77.0.254/24 dev lan
echo 1 > /proc/sys/net/ipv4/ip_forward
echo up
while read -r _; do :; done
"""
_HOST = """
hostname "$0"
mount --bind "$1" /etc/hosts
echo up
while read -r _; do :; done
"""  # bash: it also takes care of processes whose parents are gone


def why_not() -> str | None:
    """Why this process cannot make hosts; None where it can."""
    if os.geteuid() != 0:
        return "hosts of their own need root, for network namespaces"
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"{', '.join(missing)} not found: install iproute2 and util-linux"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"the kernel makes no network namespace: {tried.stderr.strip()}" if tried.returncode else None


class Machine:
    """Namespaces that live for as long as their first process.

    Args:
        command: that enters them and ends in a shell which prints `up` and reads.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if (said := self._process.stdout.readline().strip()) != "up":
            raise RuntimeError(f"{command[0]} ended with code {self._process.wait()}: {said!r}")
        self.pid = psutil.Process(self._process.pid).children(recursive=True)[-1].pid

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs another one in here."""
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", "--uts", *command]

    def off(self) -> None:
        """End every process in here, as a power cut does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Host(Machine):
    """A host on the network.

    Args:
        name: its hostname.
        address: its IPv4 address.
        command: as of `Machine`.
        environment: of what runs here.
    """

    def __init__(self, name: str, address: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self.address, self.environment = name, address, dict(environment)
        super().__init__(command)
        self._inside = ThreadPoolExecutor(1, initializer=self._enter)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], log: IO[bytes] | int, cwd: Path = Path("/")) -> subprocess.Popen[bytes]:
        """Start a program here, in the folder `cwd`; it ends with the host."""
        started = subprocess.Popen(
            self.inside(["env", f"--chdir={cwd}", *command]),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._started.append(started)
        return started

    def off(self) -> None:
        super().off()
        for started in self._started:
            started.wait()
        self._inside.shutdown()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function of this process in a thread whose sockets are on this host."""
        return self._inside.submit(function).result()

    def _enter(self) -> None:
        with open(f"/proc/{self.pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Network:
    """The switch, the hosts on it, and one outside that reaches few ports of the first of them. A context manager.

    Args:
        names: of the hosts, in the order of their addresses.
        open_ports: TCP ports that the host outside reaches.
        environment: of what runs on the hosts.
    """

    def __init__(self, names: Sequence[str], open_ports: Sequence[int], environment: Mapping[str, str]) -> None:
        self.names, self.open_ports, self.environment = names, open_ports, environment

    def __enter__(self) -> Network:
        sweep()
        # Short: Ray's Unix sockets lie below it, and a socket's path has at most 107 characters.
        self.hosts: dict[str, Host] = {}
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-", dir="/tmp"))
        addresses = {name: f"10.77.0.{i}" for i, name in enumerate(self.names, 1)} | {OUTSIDE: "10.77.1.1"}
        known = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._switch = Machine([*unshare, "bash", "-ec", _SWITCH])
        try:
            for port in self.open_ports:
                self.ip(f"rule add pref 100 iif lap ipproto tcp dport {port} lookup main")
            self.ip("rule add pref 200 iif lap prohibit")
            for name, address in addresses.items():
                self.hosts[name] = self._host(name, address)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for host in self.hosts.values():
            host.off()
        self._switch.off()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ip(self, arguments: str) -> str:
        """Run `ip` on the switch."""
        done = subprocess.run(self._switch.inside(["ip", *arguments.split()]), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {arguments}: {done.stderr.strip()}")
        return done.stdout

    def cut(self, name: str) -> None:
        """Cut a host off: nothing reaches it any more, and nothing tells those that talk to it."""
        self.ip(f"link set to-{name} down")

    def mend(self, name: str) -> None:
        """Join a host that was cut off again."""
        self.ip(f"link set to-{name} up")

    def _host(self, name: str, address: str) -> Host:
        gateway = address.rpartition(".")[0] + ".254"
        self.ip(f"netns add {name}")
        self.ip(f"link add to-{name} type veth peer name eth0 netns {name}")
        if name == OUTSIDE:
            self.ip(f"link set to-{name} name lap")
            self.ip(f"addr add {gateway}/24 dev lap")
            self.ip("link set lap up")
        else:
            self.ip(f"link set to-{name} master lan up")
        for arguments in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            self.ip(f"-n {name} {arguments}")
        self.ip(f"-n {name} route add default via {gateway}")
        folder = self.folder / name
        folder.mkdir()
        unshare = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = ["ip", "netns", "exec", name, *unshare, "bash", "-ec", _HOST, name, str(self.folder / "hosts")]
        return Host(name, address, self._switch.inside(inside), {**self.environment, "TMPDIR": str(folder)})


def sweep() -> None:
    """Remove the folders of networks whose process has ended; the kernel has removed the rest."""
    for folder in Path("/tmp").glob(f"{PREFIX}-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], T], what: str, timeout_s: float = 120, pause_s: float = 0.2) -> T:
    """What a condition gives, once it is true. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(pause_s)
    raise TimeoutError(f"{what}: not within {timeout_s} s")
