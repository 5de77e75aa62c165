"""A run has one driver at a time."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cinesynth.errors import RunTaken
from cinesynth.lease import FILE, Lease, held, read
from cinesynth.runs import Run
from cinesynth.storage import Storage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Storage.open(tmp_path / "runs" / "noir"), "noir", "train", {})


def left_behind(run: Run, **changes: object) -> None:
    """A lease that nobody keeps fresh."""
    record = json.loads(Lease(run).record()) | changes
    run.folder.write_text(FILE, json.dumps(record))


def test_a_second_driver_is_refused_with_who_holds_it(run: Run) -> None:
    taken = pytest.raises(RunTaken, match=rf"'noir' is being worked on by process {os.getpid()} on .*, since 20")
    with held(run, beat_s=0.05, watch_s=1.0), taken, held(run, beat_s=0.05, watch_s=1.0):
        pytest.fail("two hold it")
    assert not run.folder.exists(FILE)
    with held(run, beat_s=0.05, watch_s=1.0) as again:
        again.check()


def test_a_killed_driver_of_this_machine_is_followed_at_once(run: Run) -> None:
    code = (
        "import os, sys\nfrom cinesynth.lease import held\nfrom cinesynth.runs import Run\n"
        "from cinesynth.storage import Storage\n"
        f"with held(Run(Storage.open({run.folder.path!r}), 'noir', 'train', {{}})):\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert run.folder.exists(FILE)
    started = time.monotonic()
    with held(run, watch_s=30):
        assert time.monotonic() - started < 5


def test_a_lease_of_another_machine_is_taken_over_when_it_is_not_kept_fresh(run: Run) -> None:
    left_behind(run, host="elsewhere")
    started = time.monotonic()
    with held(run, watch_s=0.5):
        assert time.monotonic() - started >= 0.5


def test_a_cut_lease_does_not_stand_in_the_way(run: Run) -> None:
    run.folder.write_text(FILE, '{"token": "a')
    with held(run, watch_s=0.2):
        pass


def test_a_driver_that_slept_notices_that_it_was_followed(run: Run) -> None:
    with held(run, beat_s=0.05) as lease:
        left_behind(run, token="another", pid=1, host="elsewhere")
        deadline = time.monotonic() + 5
        while lease.lost_to is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RunTaken, match="another driver took it over: process 1 on elsewhere"):
            lease.check()
    standing = read(run)
    assert standing is not None
    assert standing["token"] == "another"


class SlowBeats:
    """Writing of a lease that waits, once it is told to, until it is let go."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits, self.begun, self.free, self.written = False, threading.Event(), threading.Event(), threading.Event()
        self._write = run.folder.write_bytes
        monkeypatch.setattr(run.folder, "write_bytes", self)

    def __call__(self, name: str, data: bytes) -> None:
        if self.waits:
            self.begun.set()
            assert self.free.wait(30)
        self._write(name, data)
        if self.begun.is_set():
            self.written.set()


def test_a_beat_that_is_being_written_at_the_end_leaves_no_lease(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = SlowBeats(run, monkeypatch)
    with held(run, beat_s=0.02):
        beats.waits = True
        assert beats.begun.wait(30)
        threading.Timer(0.3, beats.free.set).start()
    assert beats.written.wait(30)
    assert not run.folder.exists(FILE)


def test_a_lease_whose_writing_hangs_stays_and_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats = SlowBeats(run, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="cinesynth.lease"), held(run, beat_s=0.02, last_beat_s=0.1):
        beats.waits = True
        assert beats.begun.wait(30)
    assert "the lease of run noir is still being written; lease.json stays in its folder" in caplog.text
    assert run.folder.exists(FILE)
    beats.free.set()
    assert beats.written.wait(30)


def test_a_beat_after_the_end_writes_nothing(run: Run) -> None:
    with held(run) as lease:
        pass
    lease.beat()
    assert not run.folder.exists(FILE)
