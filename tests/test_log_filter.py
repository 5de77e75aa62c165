"""The one line that is left out of standard error, and everything else that is not."""

from __future__ import annotations

import os
import subprocess
import sys

LINE = "[2026-01-01 E 1 2] core.cc:1: Actor with class name: 'MapWorker' and ID: '1' has constructor arguments in the "
LINE += "object store and max_restarts > 0. If the arguments go out of scope, the restart will fail."
SCRIPT = f"""
import os, sys
from cinesynth.log_filter import without_actor_notes
with without_actor_notes():
    os.write(2, b"first\\n")
    os.write(2, {LINE.encode()!r} + b"\\n")
    print("second", file=sys.stderr)
    if sys.argv[1:] == ["crash"]:
        os.write(2, b"a last word")
        os.abort()
print("after", file=sys.stderr)
"""


def said(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    return done.stderr


def test_the_note_is_left_out_and_the_order_stays() -> None:
    assert said().splitlines() == ["first", "second", "after"]


def test_a_crash_is_still_told() -> None:
    assert said("crash").startswith("first\nsecond\na last word")
