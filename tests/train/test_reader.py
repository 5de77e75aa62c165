"""What a step reads is read while the step before it runs."""

from __future__ import annotations

import threading

import pytest

from cinesynth.train.reader import ReadAhead


def test_the_next_step_is_read_in_a_thread_before_it_is_asked_for() -> None:
    read: list[int] = []
    begun = [threading.Event() for _ in range(3)]

    def windows(step: int) -> list[str]:
        assert threading.current_thread() is not threading.main_thread()
        read.append(step)
        begun[step].set()
        return [f"window of {step}"]

    ahead = ReadAhead(windows, 3)
    assert not begun[0].wait(0.05)
    assert ahead(0) == ["window of 0"]
    assert begun[1].wait(30)
    assert not begun[2].wait(0.05)
    assert ahead(1) == ["window of 1"]
    assert begun[2].wait(30)
    assert ahead(2) == ["window of 2"]
    assert read == [0, 1, 2]  # each once, and none past the last
    assert ahead(1) == ["window of 1"]  # another than the one that was read ahead


def test_what_a_read_raises_comes_with_its_own_step() -> None:
    def windows(step: int) -> list[int]:
        if step == 1:
            raise OSError("a shard is gone")
        return [step]

    ahead = ReadAhead(windows, 3)
    assert ahead(0) == [0]
    with pytest.raises(OSError, match="a shard is gone"):
        ahead(1)
