"""What hangs or crashes ends in its child, with an error that names it; the next call works again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from cinesynth.data.scan.watch import Watched
from cinesynth.errors import AttemptFailed, DatasetError


def add(beat: Callable[[], None], a: int, b: int) -> int:
    return a + b


def pid(beat: Callable[[], None]) -> int:
    return os.getpid()


def slow(beat: Callable[[], None]) -> str:
    for _ in range(4):
        time.sleep(0.5)
        beat()
    return "done"


def pixels(beat: Callable[[], None]) -> np.ndarray:
    return np.arange(12, dtype=np.uint8).reshape(3, 4)


def hang(beat: Callable[[], None]) -> None:
    time.sleep(600)


def crash(beat: Callable[[], None]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(beat: Callable[[], None]) -> None:
    os._exit(3)


def fail(beat: Callable[[], None]) -> None:
    raise DatasetError("its own error")


def stumble(beat: Callable[[], None]) -> None:
    [][1]


@pytest.fixture
def watched() -> Watched:
    return Watched(1.5)


def test_results_come_back_from_one_child(watched: Watched) -> None:
    assert watched.call("x", add, 1, 2) == 3
    child = watched.call("x", pid)
    assert child not in (os.getpid(), 0)
    assert watched.call("x", pid) == child
    assert np.array_equal(watched.call("x", pixels), np.arange(12).reshape(3, 4))
    watched.close()
    assert not psutil.pid_exists(child)


def test_a_call_that_shows_signs_of_life_may_take_long(watched: Watched) -> None:
    assert watched.call("x", slow) == "done"
    watched.close()


def test_what_hangs_or_crashes_is_named_and_the_next_call_works(watched: Watched) -> None:
    for function, message in (
        (hang, r"clip\.mp4: no sign of life from the decoder for 1\.5 s"),
        (crash, r"clip\.mp4: the decoder crashed \(SIGSEGV\)"),
        (leave, r"clip\.mp4: the decoder ended with exit code 3"),
        (stumble, r"clip\.mp4: IndexError: list index out of range"),
    ):
        with pytest.raises(AttemptFailed, match=message):
            watched.call("clip.mp4", function)
        assert watched.call("x", add, 2, 2) == 4
    with pytest.raises(DatasetError, match="its own error"):
        watched.call("clip.mp4", fail)
    watched.close()


def test_a_child_ends_with_its_parent_even_while_it_hangs() -> None:
    script = (
        "import threading, time\n"
        "from cinesynth.data.scan.watch import Watched\n"
        "from tests.data.scan.test_watch import hang, pid\n"
        "watched = Watched(600)\n"
        "print(watched.call('x', pid), flush=True)\n"
        "watched.call('x', hang)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.5)
        parent.kill()
    assert child.wait(10) is None or not child.is_running()
