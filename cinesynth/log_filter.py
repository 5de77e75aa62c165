"""One line that Ray's core prints for Ray's own actors, kept out of a driver's log.

Ray Data hands each actor of a pool its arguments by reference and lets it restart, so the core warns, in red and once
an actor, that the arguments may be lost. They cannot be: the driver holds the references while the graph runs. The core
writes to file descriptor 2 and takes no filter, and a higher log level would hide real errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LINE = "has constructor arguments in the object store and max_restarts > 0"
# A process, not a thread: what this process says when it crashes still passes.
_FILTER = f"""
import sys
for line in sys.stdin.buffer:
    if {_LINE.encode()!r} not in line:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""
_DRAIN_S = 2.0


@contextmanager
def without_actor_notes() -> Iterator[None]:
    """While the block runs, standard error passes through a filter that leaves out this one line."""
    sys.stderr.flush()
    kept = os.dup(2)
    read, write = os.pipe()
    # A session of its own: Ctrl-C ends the job, and the filter once the job has said all.
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _FILTER], stdin=read, stdout=kept, start_new_session=True
    ) as process:
        os.close(read)
        os.dup2(write, 2)
        os.close(write)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            with suppress(subprocess.TimeoutExpired):  # something that was started meanwhile holds the pipe
                process.wait(_DRAIN_S)
            if process.poll() is None:
                process.kill()
