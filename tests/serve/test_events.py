"""Server-sent events over a real socket: what is told, to whom, and for how long."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from serve import events
from serve.auth import create_key
from serve.config import ServeConfig
from serve.jobs import JobStore
from tests.serve.asking import error, finish, post, served


@pytest.fixture
def http(client: TestClient) -> Iterator[httpx.Client]:
    headers = {"Authorization": client.headers["Authorization"]}
    with served(client.app) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as asked:
        yield asked


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.05)


def told(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Each event with its name, id and data; a heartbeat is None as data."""
    lines = response.iter_lines()
    event: dict[str, Any] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = json.loads(value) if name == "data" else value
        elif event:
            yield event
            event = {}


def new(client: TestClient, png: bytes) -> str:
    return post(client, png, prompt="x").json()["id"]


def test_a_videos_course_is_told_until_it_is_completed(
    client: TestClient, http: httpx.Client, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    first, video_id = new(client, png), new(client, png)
    with http.stream("GET", f"/v1/videos/{video_id}/events") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = told(response)
        event = next(stream)
        assert event["event"] == "status"
        assert (event["data"]["status"], event["data"]["position"]) == ("queued", 2)
        assert event["data"]["eta_s"] == 120
        assert "error" not in event["data"]
        finish(config, store)
        assert next(stream)["data"]["position"] == 1
        lease = store.lease_next("engine")
        assert lease is not None
        event = next(stream)
        assert (event["data"]["status"], event["data"]["position"]) == ("in_progress", 0)
        store.heartbeat(video_id, lease.token, 50)
        assert next(stream)["data"]["progress"] == 50
        store.complete(video_id, lease.token, "x.mp4", "00")
        last = next(stream)
        assert (last["event"], last["data"]["status"], last["data"]["progress"]) == ("completed", "completed", 100)
        assert list(stream) == [], "the stream has ended"
    known = http.get(f"/v1/videos/{video_id}/events", headers={"Last-Event-ID": last["id"]})
    assert (known.status_code, known.content) == (204, b""), "browsers come back no more"
    assert [e["event"] for e in told(http.get(f"/v1/videos/{first}/events"))] == ["completed"]


def test_who_comes_back_is_told_only_what_changed(
    client: TestClient, http: httpx.Client, store: JobStore, png: bytes
) -> None:
    video_id = new(client, png)
    url = f"/v1/videos/{video_id}/events"
    with http.stream("GET", url) as response:
        known = next(told(response))["id"]
    with http.stream("GET", url, headers={"Last-Event-ID": known}) as response:
        stream = told(response)
        lease = store.lease_next("engine")
        assert lease is not None
        assert next(stream)["data"]["status"] == "in_progress"
        store.fail(video_id, lease.token, "oom", "too big")
        event = next(stream)
    assert event["event"] == "failed"
    assert event["data"]["error"] == {"code": "oom", "message": "too big"}


def test_no_state_is_told_that_there_never_was(client: TestClient, store: JobStore, png: bytes) -> None:
    """An engine takes the job, and then ends it, just after it was read and before its place is."""
    video_id = new(client, png)
    queued = store.get(video_id)
    lease = store.lease_next("engine")
    assert lease is not None

    async def asked(operation: Any, *arguments: Any) -> Any:
        return operation(store, *arguments)

    taken = asyncio.run(events.state_of(asked, queued))
    assert (taken.status, taken.position) == ("in_progress", 0)
    running = store.get(video_id)
    store.fail(video_id, lease.token, "oom", "too big")
    assert asyncio.run(events.state_of(asked, running)).status == "failed"


def test_a_deleted_video_ends_its_streams(client: TestClient, http: httpx.Client, store: JobStore, png: bytes) -> None:
    video_id = new(client, png)
    with http.stream("GET", f"/v1/videos/{video_id}/events") as response:
        stream = told(response)
        next(stream)
        assert http.delete(f"/v1/videos/{video_id}").status_code == 200
        assert [e["event"] for e in stream] == ["deleted"]
    error(http.get(f"/v1/videos/{video_id}/events"), 404, "not_found", "id")


def test_silence_is_broken_by_comments(
    client: TestClient, http: httpx.Client, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.1)
    with http.stream("GET", f"/v1/videos/{new(client, png)}/events") as response:
        lines = response.iter_lines()
        seen = [next(lines) for _ in range(8)]
    assert seen.count(": still here") >= 2
    assert sum(line.startswith("data:") for line in seen) == 1


def test_the_table_is_asked_once_however_many_listen(
    client: TestClient, http: httpx.Client, store: JobStore, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.5)
    video_id = new(client, png)
    asked = []
    real = JobStore.place
    monkeypatch.setattr(JobStore, "place", lambda self, job_id: asked.append(1) or real(self, job_id))
    streams = [http.stream("GET", f"/v1/videos/{video_id}/events") for _ in range(8)]
    listening = [told(stream.__enter__()) for stream in streams]
    for listener in listening:
        next(listener)
    time.sleep(2)
    assert 3 <= len(asked) <= 7, "twice a second, not sixteen times"
    for stream in streams:
        stream.__exit__(None, None, None)
    time.sleep(0.6)
    before = len(asked)
    time.sleep(1)
    assert len(asked) == before, "nobody listens"


def test_streams_have_slots_that_a_client_who_leaves_frees_at_once(
    client: TestClient, http: httpx.Client, config: ServeConfig, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AT_ONCE", 9)
    video_id = new(client, png)
    url = f"/v1/videos/{video_id}/events"
    streams = [http.stream("GET", url) for _ in range(8)]
    responses = [stream.__enter__() for stream in streams]
    assert {r.status_code for r in responses} == {200}
    refused = http.get(url)
    error(refused, 429, "too_many_streams")
    assert refused.headers["retry-after"] == "5"
    bob = {"Authorization": f"Bearer {create_key(config.keys_path(), 'bob')}"}
    client.headers.update(bob)
    others = f"/v1/videos/{new(client, png)}/events"
    with http.stream("GET", others, headers=bob) as response:
        assert response.status_code == 200
        error(http.get(others, headers=bob), 503, "too_many_streams")
    for stream in streams:
        stream.__exit__(None, None, None)
    time.sleep(0.3)
    listening = client.app.state.videos._listening  # type: ignore[attr-defined]
    assert listening._of.total() == 0, "long before the next heartbeat"
    assert listening._watches == {}
