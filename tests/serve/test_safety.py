"""The safety checklist, where no other test holds a line of it: ids, owners, paths, links, and what is kept.

Elsewhere: formats, dimensions, animation, EXIF, time and memory of decoding in test_media; bytes while they stream and
slow bodies in test_api; keys in test_auth; adapters in test_adapters; leases and attempts in test_jobs.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve.auth import create_key
from serve.config import ServeConfig
from serve.jobs import JobStore
from tests.serve.asking import data_url, error, finish, post


def test_every_route_with_an_id_knows_only_the_owners_videos(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = post(client, png, prompt="x").json()["id"]
    finish(config, store)
    described = client.get("/openapi.json").json()["paths"]
    routes = [(m.upper(), path) for path, methods in described.items() for m in methods if "{video_id}" in path]
    routes += [("HEAD", "/v1/videos/{video_id}/content")]
    assert len(routes) >= 6
    client.headers["Authorization"] = f"Bearer {create_key(config.keys_path(), 'mallory')}"
    for method, path in routes:
        body = {"json": {"prompt": "y"}} if method == "POST" else {}
        foreign = client.request(method, path.format(video_id=video_id), **body)  # type: ignore[arg-type]
        unknown = client.request(method, path.format(video_id="video_" + "0" * 32), **body)  # type: ignore[arg-type]
        assert foreign.status_code == unknown.status_code == 404, (method, path)
        if method != "HEAD":
            error(foreign, 404, "not_found", "id")
            told = (r.json()["error"]["message"].partition("'")[0] for r in (foreign, unknown))
            assert len(set(told)) == 1, "nothing tells that it is there"
    assert store.get(video_id) is not None


def test_every_route_but_health_needs_a_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            named = path.format(video_id="video_x", model="m", item="i", clip="c")
            status = client.request(method, named).status_code
            assert status == (401 if path.startswith("/v1/") else 200), (method, path)


def test_ids_have_128_random_bits(client: TestClient, store: JobStore, png: bytes) -> None:
    store.queue_cap = 100
    ids = [post(client, png, prompt="x").json()["id"] for _ in range(30)]
    assert all(re.fullmatch(r"video_[0-9a-f]{32}", video_id) for video_id in ids)
    bits = [int(video_id.removeprefix("video_"), 16) for video_id in ids]
    ones = [sum(number >> place & 1 for number in bits) for place in range(128)]
    assert min(ones) > 0, "no bit stands still"  # by chance once in four million runs
    assert max(ones) < 30


@pytest.mark.parametrize(
    "video_id",
    [
        "..",
        "../keys.json",
        "..%2f..%2fkeys.json",
        "%2e%2e%2fkeys.json",
        "/etc/passwd",
        "a" * 5000,
        "video_%00",
        "%ff",
        "*",
    ],
)
def test_an_id_is_never_a_path(client: TestClient, config: ServeConfig, video_id: str) -> None:
    for suffix in ("", "/content", "/events"):
        answer = client.get(f"/v1/videos/{video_id}{suffix}")
        assert answer.status_code in (404, 307), answer.text
        assert "sha256" not in answer.text
    client.delete(f"/v1/videos/{video_id}")
    assert config.keys_path().is_file()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/x.png",
        "https://example.com/x.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "//example.com/x.png",
        "ftp://example.com/x.png",
        " data:image/png;base64,AAAA",
    ],
)
def test_nothing_is_fetched_for_a_client(
    client: TestClient, url: str, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(client, png, prompt="x")  # starts what is needed
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("a connection was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("a name was looked up"))
    body = {"prompt": "x", "input_reference": {"image_url": url}}
    told = error(client.post("/v1/videos", json=body), 400, "invalid_image", "input_reference")
    assert "links are not fetched" in told["message"]


def test_no_answer_tells_a_folder_of_the_server(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes, publish: Any
) -> None:
    publish("foreign", base="cd" * 32)
    look = publish("look")
    video_id = post(client, png, prompt="x", lora=look.ref).json()["id"]
    finish(config, store)
    failing = post(client, png, prompt="x").json()["id"]
    lease = store.lease_next("engine")
    assert lease is not None
    store.fail(failing, lease.token, "invalid", "the first frame is damaged")
    (config.inputs() / f"{video_id}.png").unlink()
    answers = [
        client.get("/readyz"),
        client.get("/openapi.json"),
        client.get("/v1/models"),
        client.get("/v1/adapters"),
        client.get("/v1/videos"),
        client.get(f"/v1/videos/{failing}"),
        client.get(f"/v1/videos/{failing}/content"),
        client.post(f"/v1/videos/{video_id}/remix", json={"prompt": "y"}),
        post(client, png, prompt="x", lora="foreign"),
        post(client, png, prompt="x", lora="nothing"),
        post(client, b"\xff\xd8\xff broken", prompt="x"),
    ]
    config.keys_path().write_text("{")
    answers.append(client.get("/v1/videos"))
    for answer in answers:
        seen = answer.text + str(answer.headers)
        assert config.storage not in seen, answer.url
        assert "/srv" not in seen, answer.url
        assert "/tmp" not in seen, answer.url


def test_what_is_refused_is_neither_queued_nor_kept(client: TestClient, config: ServeConfig, store: JobStore) -> None:
    broken = data_url(b"\x89PNG\r\n\x1a\n broken")
    for body in (
        {"prompt": "x", "input_reference": {"image_url": broken}},
        {"prompt": "x", "guidance_scale": float("inf"), "input_reference": {"image_url": broken}},
        {"prompt": "x", "num_frames": 18, "input_reference": {"image_url": broken}},
        {"prompt": "x" * 10_001, "input_reference": {"image_url": broken}},
        {"prompt": "\ud800", "input_reference": {"image_url": broken}},
        {"\ud800": "x", "prompt": "x", "input_reference": {"image_url": broken}},
    ):
        sent = client.post("/v1/videos", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert sent.status_code == 400, sent.text
    assert store.backlog().queued == 0
    assert list(config.inputs().iterdir()) == []
