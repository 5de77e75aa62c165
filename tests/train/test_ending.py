"""A driver that no longer wants a training ends its workers first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cinesynth.errors import Cut
from cinesynth.storage import Storage
from cinesynth.train import ending
from cinesynth.train.ending import Ending, EndRequest


def test_workers_are_asked_before_the_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_LOOK_S", 0.01)
    run = Storage.open(tmp_path)
    run.write_json(ending.FILE, {"reason": "of a former try"})
    driver = Ending(run)
    worker, other = EndRequest(run, looks=True), EndRequest(run, looks=False)
    driver.watch(lambda: None)
    time.sleep(0.05)
    assert not worker()
    driver.raise_any()

    def cut() -> None:
        raise Cut("not among the best")

    driver.watch(cut)
    driver.watch(cut)  # waits for the workers
    deadline = time.monotonic() + 5
    while not worker() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker()
    assert not other()  # it learns of it with the step's figures
    with pytest.raises(Cut, match="not among the best"):
        driver.raise_any()


def test_a_group_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    driver = Ending(Storage.open(tmp_path), patience_s=0.0)

    def wrong() -> None:
        raise ValueError("a callback is wrong")

    driver.watch(wrong)
    time.sleep(0.01)
    with pytest.raises(ValueError, match="a callback is wrong"):
        driver.watch(wrong)
