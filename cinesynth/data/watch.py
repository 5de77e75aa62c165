"""Run what may hang or crash (a decoder on a broken file) in a child process, under a time limit.

The child is started once in a process and kept; when it hangs or dies it is replaced at the next call. A call that
takes long says that it is alive through the `beat` that it is given.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cinesynth.errors import CinesynthError, MediaError

Result = TypeVar("Result")
Beat = Callable[[], None]

# Not a `multiprocessing` child: those import the parent's main module again, which in a Ray worker is Ray itself.
_CHILD = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
from cinesynth.data.watch import serve
serve(pipe)
"""


class Watched:
    """A child process that runs functions for this one.

    Args:
        limit_s: seconds without a sign of life after which the child is killed.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def call(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(beat, *arguments)` in the child; function, arguments and result must pickle.

        Raises MediaError, beginning with `what`, when the time limit passes or the child dies, and the function's own
        CinesynthError as it is.
        """
        pipe = self._connect()
        try:
            pipe.send((function, arguments))
            while pipe.poll(self.limit_s):
                kind, value = pipe.recv()
                if kind == "result":
                    return value
                if kind == "error":
                    raise value
        except (EOFError, BrokenPipeError, ConnectionResetError) as e:
            raise MediaError(f"{what}: the decoder {self._ending()}") from e
        self.close()
        raise MediaError(f"{what}: no sign of life from the decoder for {self.limit_s:g} s")

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
                command = [sys.executable, "-c", _CHILD, str(theirs.fileno())]
                # It ends by itself when this process does: the pipe breaks.
                self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            self._pipe = Connection(ours.detach())
            self._pipe.send(sys.path)
        return self._pipe

    def _ending(self) -> str:
        assert self._child is not None
        code = self._child.wait(10)
        self.close()
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def serve(pipe: Connection) -> None:
    """The child's loop, until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
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
        return "error", MediaError(f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})")
