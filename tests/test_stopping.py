"""Signals end a process wherever they meet it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from cinesynth.stopping import raise_on_signals

STOPS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


class Thing:
    pass


class Destroyed:
    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def __del__(self) -> None:
        self.then()


def in_a_callback(told: Callable[[], None]) -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: told())
    del thing
    assert reference() is None


def in_a_destructor(told: Callable[[], None]) -> None:
    thing = Destroyed(told)
    del thing
    gc.collect()  # it holds the interpreter, so that the signal comes as the wait begins


@pytest.fixture(scope="module", autouse=True)
def heap() -> list[list[int]]:
    """So much that a collection takes a while."""
    return [[i] for i in range(500_000)]


@pytest.fixture(autouse=True)
def raising(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What Python drops besides."""
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_value))
    former = {number: signal.getsignal(number) for number in STOPS}
    raise_on_signals()
    yield dropped
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("meet", [lambda told: told(), in_a_callback, in_a_destructor])
def test_a_signal_ends_the_wait_after_it(
    number: signal.Signals, meet: Callable[[Callable[[], None]], None], raising: list[object]
) -> None:
    def told() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # it is taken here

    def meet_and_wait() -> None:
        meet(told)
        time.sleep(10)

    began = time.monotonic()
    with pytest.raises(STOPS[number]) as stop:
        meet_and_wait()
    assert time.monotonic() - began < 5
    if isinstance(stop.value, SystemExit):
        assert stop.value.code == signal.SIGTERM
    assert raising == []


def test_other_errors_are_dropped_as_before(raising: list[object]) -> None:
    def fails() -> None:
        raise ValueError("of a destructor")

    in_a_destructor(fails)
    assert [str(error) for error in raising] == ["of a destructor"]
