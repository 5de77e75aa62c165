"""One driver at a time: the lease of a run.

A driver that works on a run keeps `lease.json` in its folder fresh. A second driver of the same run is refused, with
who holds it and since when. A lease that is no longer kept fresh is taken over: at once when its process is gone from
this machine, else after watching it for a few beats, so that clocks of different machines do not matter.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cinesynth.errors import RunTaken, StorageError
from cinesynth.runs import Run

log = logging.getLogger(__name__)

FILE = "lease.json"
BEAT_S = 5.0
WATCH_S = 4 * BEAT_S
"""How long a lease is watched before it counts as left behind."""
LAST_BEAT_S = 10.0
"""How long a beat that is being written when a lease ends is waited for."""


@dataclass
class Lease:
    """This process's hold on a run. Make it with `held`."""

    run: Run
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    beats: int = 0
    lost_to: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise RunTaken when another driver took the run over, as after a long pause of this process."""
        if self.lost_to is not None:
            raise RunTaken(f"run {self.run.name!r}: another driver took it over: {self.lost_to}")

    def record(self) -> bytes:
        """What the file says."""
        held_by = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(), "since": self.since}
        return (json.dumps({**held_by, "token": self.token, "beat": self.beats}, indent=2) + "\n").encode()

    def beat(self) -> None:
        """Keep the file fresh; notice when it is another's."""
        standing = read(self.run)
        if standing is not None and standing["token"] != self.token:
            self.lost_to = told(standing)
            return
        if self.ended.is_set():
            return
        self.beats += 1
        self.run.folder.write_bytes(FILE, self.record())


@contextmanager
def held(
    run: Run, beat_s: float = BEAT_S, watch_s: float = WATCH_S, last_beat_s: float = LAST_BEAT_S
) -> Iterator[Lease]:
    """Hold a run for as long as the block runs.

    Args:
        run: that nobody else may work on meanwhile.
        beat_s: seconds between two writes of the file.
        watch_s: how long another's lease is watched before it is taken over.
        last_beat_s: how long a beat that is being written at the end is waited for. Where it takes longer, as on a
            storage that hangs, the file stays: it could be written again after it was deleted.

    Raises RunTaken when another driver holds the run.
    """
    lease = Lease(run)
    _take(lease, watch_s)

    def keep() -> None:
        while not lease.ended.wait(beat_s) and lease.lost_to is None:
            try:
                lease.beat()
            except (OSError, StorageError) as e:
                log.warning("the lease of run %s cannot be kept fresh: %s", run.name, e)

    keeping = threading.Thread(target=keep, name="keeps-lease", daemon=True)
    keeping.start()
    try:
        yield lease
    finally:
        lease.ended.set()
        keeping.join(last_beat_s)
        if keeping.is_alive():
            log.warning("the lease of run %s is still being written; %s stays in its folder", run.name, FILE)
        else:
            _give_back(lease)


def _give_back(lease: Lease) -> None:
    standing = read(lease.run)
    if standing is not None and standing["token"] == lease.token:
        lease.run.folder.delete(FILE)


def read(run: Run) -> dict[str, Any] | None:
    """What the lease of a run says; None where there is none, or where it was cut while it was written."""
    try:
        standing = run.folder.read_json(FILE)
    except StorageError:
        return None
    return standing if isinstance(standing, dict) and {"token", "beat"} <= standing.keys() else None


def told(standing: dict[str, Any]) -> str:
    """Who holds a lease, and since when."""
    return f"process {standing.get('pid')} on {standing.get('host')}, since {standing.get('since')}"


def _take(lease: Lease, watch_s: float) -> None:
    run = lease.run
    if not run.folder.write_new(FILE, lease.record()):
        standing = read(run)
        if standing is not None and not _is_gone(standing):
            log.info("run %s is held by %s; watching for %.0f s whether that lives", run.name, told(standing), watch_s)
            _watch(run, standing, watch_s)
        run.folder.write_bytes(FILE, lease.record())
    time.sleep(0.05)  # two that took it over at once: the one whose record stands has it
    standing = read(run)
    if standing is None or standing["token"] != lease.token:
        raise RunTaken(f"run {run.name!r} is being worked on by {told(standing or {})}; wait for it, or stop it")


def _watch(run: Run, seen: dict[str, Any], watch_s: float) -> None:
    """Return once the lease was left alone for so long. Raises RunTaken when it is kept fresh."""
    until = time.monotonic() + watch_s
    while time.monotonic() < until:
        time.sleep(min(0.2, watch_s / 4))
        standing = read(run)
        if standing is None:
            return
        if standing["token"] != seen["token"] or standing["beat"] != seen["beat"]:
            raise RunTaken(f"run {run.name!r} is being worked on by {told(standing)}; wait for it, or stop it")


def _is_gone(standing: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, in its present uptime and namespace, that has ended."""
    if standing.get("host") != socket.gethostname() or standing.get("boot") != _boot():
        return False
    return not Path(f"/proc/{standing.get('pid')}").exists()


def _boot() -> str:
    """Names this machine's uptime and this process's namespace of pids; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
