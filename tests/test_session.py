"""Which Ray cluster a driver connects to: one that answers, found out within seconds."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cinesynth import session
from cinesynth.config import PublishConfig
from cinesynth.errors import ConfigError
from cinesynth.session import check_head, interpreter_for_ray, interruptible, ray_session
from cinesynth.settings import parse_config
from tests.conftest import Head


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of something that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_dead_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", dead)
    config = parse_config(PublishConfig, {"name": "p", "adapter": "a", "adapter_name": "a"})
    started = time.monotonic()
    with pytest.raises(ConfigError, match=f"nothing listens at {dead}: .*refused"), ray_session(config):
        pass
    assert time.monotonic() - started < 5


def test_what_does_not_answer_as_a_head_is_refused_within_its_time(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_ANSWER_S", 0.5)
    with pytest.raises(ConfigError, match="did not answer as a Ray head"):
        check_head(mute, "ray.address")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "head:port", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"ray\.address: .* is not HOST:PORT"):
        check_head(address, "ray.address")


def test_a_head_that_answers_is_taken(ray_head: Head) -> None:
    check_head(ray_head.address, "ray.address")
    check_head("local", "ray.address")


def test_ray_takes_no_signal_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private cluster's own handler would end the process before a run records that it was stopped."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    ours = signal.getsignal(signal.SIGTERM)
    try:
        monkeypatch.setattr("ray.init", lambda **_: signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1)))
        session.connect("local", "ray.address", log_to_driver=False)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_ends_a_wait_at_once_and_errors_come_through(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    stay = threading.Event()
    press = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    press.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruptible(stay.wait)
    assert time.monotonic() - started < 5
    stay.set()
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_ray_gets_an_interpreter_by_a_path_without_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter_for_ray(tmp_path) == sys.executable or " " in sys.executable
    spaced = tmp_path / "a folder" / "environment"
    spaced.parent.mkdir()
    spaced.symlink_to(sys.prefix)
    monkeypatch.setattr(sys, "executable", str(spaced / "bin" / "python"))
    monkeypatch.setattr(sys, "prefix", str(spaced))
    short = tmp_path / "short"
    short.mkdir()
    python = interpreter_for_ray(short)
    assert " " not in python
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(prefix.stdout.strip()).parent == short
    assert interpreter_for_ray(short) == python, "the link is made once"
