"""Run what may hang or crash (a decoder on a broken file) in a child process, under a time limit.

The child is started once in a process and kept; when it hangs or dies it is replaced at the next call. A call that
takes long says that it is alive through the `beat` that it is given. The child ends itself when its parent is gone,
even while it hangs.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cinesynth.errors import AttemptFailed, CinesynthError

Result = TypeVar("Result")
Beat = Callable[[], None]

# This is no `multiprocessing` child: those import the parent's main module, which in a Ray worker is Ray itself.
_CHILD = """
import sys
parent = int(sys.argv[2])
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:], modules = pipe.recv()
from cinesynth.data.scan.watch import serve
serve(pipe, parent, modules)
"""
_START_S = 300.0  # a cold disk, many at once


class Watched:
    """A child process that runs functions for this one.

    Args:
        limit_s: seconds without a sign of life after which the child is killed.
        modules: imported by the child when it starts, outside the time limit.
    """

    def __init__(self, limit_s: float, modules: Sequence[str] = ()) -> None:
        self.limit_s, self._modules = limit_s, list(modules)
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def call(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(beat, *arguments)` in the child; function, arguments and result must pickle.

        Raises the function's own CinesynthError as it is, and AttemptFailed, beginning with `what`, when the time
        limit passes, the child dies, or the function raises anything else.
        """
        answered = False
        try:
            pipe = self._connect()
            pipe.send((function, arguments))
            while pipe.poll(self.limit_s):
                kind, value = pipe.recv()
                if kind != "beat":
                    answered = True
                    if kind == "result":
                        return value
                    raise value if isinstance(value, CinesynthError) else AttemptFailed(f"{what}: {value}")
        except (EOFError, BrokenPipeError, ConnectionResetError) as e:
            raise AttemptFailed(f"{what}: the decoder {self._ending()}") from e
        finally:
            if not answered:  # a late answer would be taken for that of the next call
                self.close()
        raise AttemptFailed(f"{what}: no sign of life from the decoder for {self.limit_s:g} s")

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _connect(self) -> Connection:
        if self._pipe is None or self._child is None or self._child.poll() is not None:
            self.close()
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(os.getpid())]
                self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            self._pipe = Connection(ours.detach())
            self._pipe.send((sys.path, self._modules))
            if not self._pipe.poll(_START_S):
                raise AttemptFailed(f"the decoding process did not start within {_START_S:g} s")
            self._pipe.recv()
        return self._pipe

    def _ending(self) -> str:
        assert self._child is not None
        code = self._child.wait(10)
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


@lru_cache(maxsize=2)
def watched(limit_s: float, module: str) -> Watched:
    """This process's decoding child for the functions of a module."""
    return Watched(limit_s, [module])


def serve(pipe: Connection, parent: int, modules: Sequence[str] = ()) -> None:
    """The child's loop, until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for name in modules:
        importlib.import_module(name)
    try:
        pipe.send(("ready", None))
        while True:
            function, arguments = pipe.recv()
            pipe.send(_outcome(pipe, function, arguments))
    except (EOFError, OSError):
        return


def _outcome(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "result", function(lambda: pipe.send(("beat", None)), *arguments)
    except CinesynthError as e:
        return "error", e
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return "error", f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})"


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)
