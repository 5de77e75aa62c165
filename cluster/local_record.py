"""What is kept of a local head that goes on after its command ended: a file of the user's own, with its token.

It lies in `$XDG_STATE_HOME/cinesynth/heads` (default: `~/.local/state/cinesynth/heads`). A head is known by its process
id *and* the time at which that process was made, so that a process which got the id later is never taken for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster.local_head import RAY_FOLDER, HeadError, LocalHead, end_head

_SAME_TIME_S = 0.5
"""Two readings of a process's creation time differ by less: the kernel counts in hundredths of a second."""
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class HeadRecord:
    """A head as `up` left it.

    Attributes:
        pid: of its first process.
        created: when that process was made, in seconds since the epoch.
        folder: all that it writes while it runs; the path marks its processes.
        variables: what a client's environment needs, the token among it.
        dashboard: its address.
        num_cpus: logical CPUs.
        log: the head's own output.
    """

    pid: int
    created: float
    folder: str
    variables: dict[str, str]
    dashboard: str
    num_cpus: int
    log: str

    @classmethod
    def of(cls, head: LocalHead, log: Path) -> HeadRecord:
        """Of a head whose processes are started."""
        created = psutil.Process(head.pid).create_time()
        return cls(head.pid, created, str(head.folder), head.variables, head.dashboard, head.num_cpus, str(log))

    @property
    def ray_folder(self) -> Path:
        """Ray's temporary folder: sessions with their logs, and the list of metrics ports."""
        return Path(self.folder) / RAY_FOLDER

    def process(self) -> psutil.Process | None:
        """Its first process; None where that is gone, whatever has its id now."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.created) > _SAME_TIME_S:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def end(self) -> int:
        """End it and what it started, and remove its folder; returns how many processes there were."""
        folder = Path(self.folder)
        if folder.parent != Path("/tmp") or not folder.name.startswith("cs-"):
            raise HeadError(f"the record names {self.folder!r} as a head's folder, which no head of ours has")
        return end_head(self.process(), folder)

    def ask(self, path: str) -> Any:
        """The dashboard's answer to a GET, from JSON. Raises httpx.HTTPError where it gives none."""
        headers = {"Authorization": f"Bearer {self.variables['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(f"{self.dashboard}{path}", headers=headers, timeout=_PATIENCE_S)
        answer.raise_for_status()
        return answer.json()

    def since(self) -> str:
        """When it was started, in local time."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.created))


def heads_folder() -> Path:
    """Where records and logs of heads lie, for this user's eyes only."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "cinesynth" / "heads"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def names() -> list[str]:
    """Of the heads that have a record."""
    return sorted(path.stem for path in heads_folder().glob("*.json"))


def read_record(name: str) -> HeadRecord | None:
    """The record of a head; None where there is none. Raises HeadError for one that cannot be read."""
    path = _path(name)
    try:
        told = json.loads(path.read_text())
        return HeadRecord(**{field.name: told[field.name] for field in fields(HeadRecord)})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise HeadError(f"{path}: no record of a head ({type(e).__name__}: {e}); remove the file") from e


def write_record(name: str, record: HeadRecord) -> None:
    """Keep a record, with mode 0600."""
    path = _path(name)
    temporary = path.with_suffix(f".{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(record), file, indent=1)
    os.replace(temporary, path)


def remove_record(name: str) -> None:
    """Forget a head."""
    _path(name).unlink(missing_ok=True)


@contextmanager
def held(name: str) -> Iterator[None]:
    """Hold a name while its head is started or ended. Raises HeadError while another command holds it."""
    with open(os.open(heads_folder() / f"{name}.lock", os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeadError(f"another command starts or ends the head {name!r} at this moment; wait for it") from None
        yield


def _path(name: str) -> Path:
    return heads_folder() / f"{name}.json"
