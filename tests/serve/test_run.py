"""Who answers at a port, against small servers of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from cinesynth.errors import ConfigError
from cluster.local import free_ports
from serve import run
from serve.config import ServeConfig

Answer = tuple[int, bytes]


@contextmanager
def server(answers: Callable[[str], Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def ready(service: str, release: str = "now") -> Answer:
    return 200, json.dumps({"status": "ready", "service": service, "release": release}).encode()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (ready("me"), {"status": "ready", "service": "me", "release": "now"}),
        ((503, b"{}"), None),
        ((507, b"{}"), None),
        ((404, b"Path '/readyz' not found. Ping http://.../-/routes for available routes."), None),
        ((404, b"not here"), {}),
        ((200, b"<html>"), {}),
        ((200, b"[1]"), {}),
    ],
)
def test_who_is_ready_at_a_url(answer: Answer, found: dict[str, str] | None) -> None:
    with server(lambda path: answer) as url:
        assert run._answer(url) == found


def test_a_service_that_becomes_ready_is_waited_for() -> None:
    asked: list[str] = []

    def later(path: str) -> Answer:
        asked.append(path)
        if len(asked) <= 3:
            return 503, b"{}"
        return ready("me", "before" if len(asked) == 4 else "now")  # replicas of before go on for a moment

    with server(later) as url:
        run._wait_ready(url, "me", "now")
    assert len(asked) == 4 + run.ASKED


def test_a_port_that_another_server_shares_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ALONE_S", 0.1)
    asked: list[str] = []

    def shared(path: str) -> Answer:
        asked.append(path)
        return ready("other" if len(asked) % 5 == 0 else "me")

    with server(shared) as url, pytest.raises(ConfigError, match="another server answers at"):
        run._wait_ready(url, "me", "now")


def test_what_is_never_ready_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "READY_S", 0.5)
    with server(lambda path: (503, b"{}")) as url, pytest.raises(ConfigError, match="is not ready at"):
        run._wait_ready(url, "me", "now")


def test_a_proxy_without_application_is_a_proxy_and_a_free_port_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PROXY_S", 0.5)
    for status in (200, 503):
        with server(lambda path, status=status: (status, b"")) as url:  # type: ignore[misc]
            run._check_proxy(url)
    with pytest.raises(ConfigError, match="with another host or port"):
        run._check_proxy(f"http://127.0.0.1:{free_ports(1)[0]}")


def test_a_port_that_is_not_the_services_own_is_refused_before_anything_is_deployed(
    config: ServeConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve as ray_serve

    monkeypatch.setattr(run, "PROXY_S", 0.3)
    running = {"cinesynth": SimpleNamespace(status="RUNNING")}
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(ray_serve, "start", lambda http_options: started.append(http_options))
    monkeypatch.setattr(ray_serve, "status", lambda: SimpleNamespace(applications=running))
    for change in ("run", "delete", "shutdown"):
        monkeypatch.setattr(ray_serve, change, lambda *_, **__: pytest.fail("the running service was touched"))
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match=f"no proxy of Ray Serve answers at http://127.0.0.1:{port}"):
        run.deploy(config.model_copy(update={"port": port}))
    running.clear()
    with server(lambda path: ready("another")) as url, pytest.raises(ConfigError, match="another server already"):
        run.deploy(config.model_copy(update={"port": int(url.rpartition(":")[2])}))
    assert [options["location"] for options in started] == ["EveryNode"] * 2
    assert not config.home().joinpath("jobs.db").exists(), "no database is opened, which may bring it to a new version"


def test_the_service_is_taken_down_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray import serve as ray_serve

    there, asked = {"cinesynth": "RUNNING", "another": "RUNNING"}, []
    monkeypatch.setattr(run, "_connect", asked.append)
    monkeypatch.setattr(ray_serve, "status", lambda: SimpleNamespace(applications=there))
    monkeypatch.setattr(ray_serve, "delete", there.pop)
    for told in ("the service is down\n", "no service runs there\n"):
        run.main(["--delete", "--address", "127.0.0.1:6379"])
        assert capsys.readouterr().out == told
    assert list(there) == ["another"]
    assert asked == ["127.0.0.1:6379"] * 2
