"""The HTTP interface over a real store, without Ray: every byte goes through the ASGI application."""

from __future__ import annotations

import asyncio
import errno
import io
import pickle
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image
from sqlalchemy import make_url

from cinesynth.pictures import crop_to
from cinesynth.registry import Published, Registry
from cinesynth.storage import Storage
from serve.api import create_api
from serve.app import ClientJobs
from serve.auth import KeyRing, create_key
from serve.bodies import FORM_BYTES
from serve.config import ServeConfig, UploadLimits
from serve.errors import ApiError
from serve.jobs import JobStore, LocalJobs
from serve.records import DatabaseFull
from serve.schema import parse_create, resolve
from tests.serve.asking import data_url, error, finish, post
from tests.serve.conftest import BASE_SHA256


def test_multipart_is_queued_with_its_first_frame(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    response = post(client, png, prompt="a car", seconds="1", size="96x64", seed="7", guidance_scale="1.5")
    assert response.status_code == 200, response.text
    shown = response.json()
    assert (shown["object"], shown["status"], shown["progress"]) == ("video", "queued", 0)
    assert (shown["seconds"], shown["size"], shown["model"]) == ("1", "96x64", "drawing")
    job = store.get(shown["id"])
    assert job is not None
    assert (job.owner, job.request["num_frames"], job.request["sampler"]["seed"]) == ("alice", 17, 7)
    stored = np.asarray(Image.open(config.inputs() / job.image))
    assert np.array_equal(stored, crop_to(Image.open(io.BytesIO(png)), 64, 96)), "as the generator would crop it"
    assert np.array_equal(crop_to(Image.fromarray(stored), 64, 96), stored), "which changes it no more"
    assert client.get(f"/v1/videos/{shown['id']}").json() == shown


def test_json_with_a_data_url_is_the_same(client: TestClient, config: ServeConfig, store: JobStore, png: bytes) -> None:
    body = {"prompt": "a car", "num_frames": 9, "input_reference": {"image_url": data_url(png)}}
    response = client.post("/v1/videos", json=body)
    assert response.status_code == 200, response.text
    job = store.get(response.json()["id"])
    assert job is not None
    assert job.request["num_frames"] == 9
    assert (config.inputs() / job.image).is_file()


def test_without_a_good_key_nothing_is_answered_but_health(client: TestClient, config: ServeConfig, png: bytes) -> None:
    for header in ("", "Bearer wrong", "Basic x"):
        client.headers["Authorization"] = header
        error(post(client, png, prompt="x"), 401, "invalid_api_key")
        error(client.get("/v1/videos/video_x"), 401, "invalid_api_key")
        error(client.get("/v1/videos/video_x/content"), 401, "invalid_api_key")
    assert client.get("/v1/videos/video_x").headers["www-authenticate"] == "Bearer"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "service": config.service(), "release": ""}


def test_the_video_of_another_key_does_not_exist(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = post(client, png, prompt="x").json()["id"]
    finish(config, store)
    mine = client.get(f"/v1/videos/{video_id}/content")
    assert mine.status_code == 200
    client.headers["Authorization"] = f"Bearer {create_key(config.keys_path(), 'mallory')}"
    error(client.get(f"/v1/videos/{video_id}"), 404, "not_found", "id")
    error(client.get(f"/v1/videos/{video_id}/content"), 404, "not_found", "id")
    error(client.get("/v1/videos/video_unknown"), 404, "not_found", "id")


def test_content_is_refused_until_completed_then_answers_ranges(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = post(client, png, prompt="x").json()["id"]
    early = client.get(f"/v1/videos/{video_id}/content")
    error(early, 409, "not_ready")
    assert early.headers["x-should-retry"] == "false"
    data = finish(config, store)
    whole = client.get(f"/v1/videos/{video_id}/content")
    assert (whole.status_code, whole.headers["content-type"], whole.content) == (200, "video/mp4", data)
    part = client.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    for given, status in (("bytes=a-b", 400), ("lines=1-2", 400), (f"bytes={len(data)}-", 416)):
        refused = client.get(f"/v1/videos/{video_id}/content", headers={"Range": given})
        assert given in error(refused, status, "invalid_range", "Range")["message"]
    assert refused.headers["content-range"] == f"bytes */{len(data)}"
    head = client.head(f"/v1/videos/{video_id}/content")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")
    tail = client.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=-5"})
    assert tail.content == data[-5:]
    error(client.get(f"/v1/videos/{video_id}/content?variant=gif"), 400, "invalid_value", "variant")
    shown = client.get(f"/v1/videos/{video_id}").json()
    assert (shown["status"], shown["progress"]) == ("completed", 100)
    assert shown["expires_at"] == shown["completed_at"] + 86_400
    for path in config.results().iterdir():
        path.unlink()
    error(client.get(f"/v1/videos/{video_id}/content"), 404, "expired")


def test_a_failed_video_says_why(client: TestClient, store: JobStore, png: bytes) -> None:
    video_id = post(client, png, prompt="x").json()["id"]
    lease = store.lease_next("engine")
    assert lease is not None
    store.fail(video_id, lease.token, "oom", "too big")
    assert client.get(f"/v1/videos/{video_id}").json()["error"] == {"code": "oom", "message": "too big"}
    assert "too big" in error(client.get(f"/v1/videos/{video_id}/content"), 409, "failed")["message"]


def test_bad_fields_are_refused_in_both_forms(client: TestClient, config: ServeConfig, png: bytes) -> None:
    url = {"image_url": data_url(png)}
    error(post(client, png, prompt="x", quality="high"), 400, "invalid_value", "quality")
    error(client.post("/v1/videos", json={"prompt": "x", "n": 2, "input_reference": url}), 400, "invalid_value", "n")
    error(post(client, png), 400, "invalid_value", "prompt")
    error(post(client, None, prompt="x"), 400, "missing", "input_reference")
    error(client.post("/v1/videos", json={"prompt": "x"}), 400, "missing", "input_reference")
    error(post(client, None, prompt="x", input_reference=data_url(png)), 400, "missing", "input_reference")
    shape = error(post(client, png, prompt="x", seconds="9"), 400, "shape_not_allowed", "seconds")
    assert [row["size"] for row in shape["allowed_shapes"]] == ["96x64", "64x96"]
    twice = [("prompt", (None, "a")), ("prompt", (None, "b")), ("input_reference", ("f", png))]
    error(client.post("/v1/videos", files=twice), 400, "invalid_value", "prompt")
    file = [("prompt", ("f", b"text")), ("input_reference", ("f", png))]
    assert client.post("/v1/videos", files=file).status_code == 400
    for body in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        error(
            client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"}), 400, "invalid_json"
        )
    error(
        client.post("/v1/videos", content=b"x", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type"
    )
    nan = b'{"prompt": "x", "guidance_scale": NaN, "input_reference": {"image_url": "data:,"}}'
    error(
        client.post("/v1/videos", content=nan, headers={"Content-Type": "application/json"}),
        400,
        "invalid_value",
        "guidance_scale",
    )
    assert list(config.inputs().iterdir()) == [], "nothing is kept of a refused request"


def test_bad_images_are_refused_before_anything_is_queued(
    client: TestClient, store: JobStore, config: ServeConfig
) -> None:
    error(post(client, b"GIF89a...", prompt="x"), 400, "invalid_image", "input_reference")
    for url in ("https://example.com/x.png", "file:///etc/passwd"):
        body = {"prompt": "x", "input_reference": {"image_url": url}}
        error(client.post("/v1/videos", json=body), 400, "invalid_image", "input_reference")
    assert store.backlog().queued == 0
    assert list(config.inputs().iterdir()) == []


def test_too_many_bytes_are_refused_while_they_come(client: TestClient, config: ServeConfig, png: bytes) -> None:
    limit = config.image.max_bytes
    error(post(client, png + b"\0" * limit, prompt="x"), 413, "too_large", "input_reference")
    error(post(client, b"\0" * (limit + FORM_BYTES), prompt="x"), 413, "too_large", "input_reference")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_body_that_does_not_end_is_read_up_to_the_limit(client: TestClient, config: ServeConfig, kind: str) -> None:
    """TestClient reads a body whole before the application sees it; this transport reads as the application does."""
    limit = config.image.max_bytes * 4 // 3 + FORM_BYTES
    taken = 0

    async def endless() -> AsyncIterator[bytes]:  # no Content-Length: only counting helps
        nonlocal taken
        yield b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="f"\r\n\r\n'
        while taken < 10 * limit:
            taken += 10_000
            yield b" " * 10_000

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=client.headers) as asking:
            return await asking.post("/v1/videos", content=endless(), headers={"Content-Type": kind})

    error(asyncio.run(send()), 413, "too_large", "input_reference")
    assert limit <= taken <= limit + 20_000


def test_a_full_queue_says_when_to_come_back(client: TestClient, config: ServeConfig, png: bytes) -> None:
    for _ in range(3):
        assert post(client, png, prompt="x").status_code == 200
    response = post(client, png, prompt="x")
    assert error(response, 429, "queue_full")["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) >= 1
    assert len(list(config.inputs().iterdir())) == 3


def test_an_adapter_is_resolved_to_an_immutable_version(
    client: TestClient, store: JobStore, png: bytes, publish: Callable[..., Published]
) -> None:
    published = publish("film-look")
    for ref in ("film-look", "film-look@latest", published.ref):
        response = post(client, png, prompt="x", lora=ref)
        assert response.status_code == 200, response.text
        job = store.get(response.json()["id"])
        assert job is not None
        assert job.adapter == published.ref
        assert job.request["adapters"] == [{"ref": published.ref, "sha256": published.sha256, "scale": 1.0}]


def test_an_adapter_that_is_missing_or_of_another_base_is_refused(
    client: TestClient, store: JobStore, png: bytes, publish: Callable[..., Published]
) -> None:
    publish("foreign", base="cd" * 32)
    for ref in ("nothing", "foreign@9", "../../etc@passwd", "/etc/passwd"):
        error(post(client, png, prompt="x", lora=ref), 404, "adapter_not_found", "lora")
    error(post(client, png, prompt="x", lora="foreign"), 400, "adapter_mismatch", "lora")
    assert store.backlog().queued == 0


def test_unknown_routes_and_methods_have_the_same_shape(client: TestClient) -> None:
    error(client.get("/v1/nothing"), 404, "not_found")
    error(client.put("/v1/videos"), 405, "method_not_allowed")


def test_a_bug_is_a_500_without_details(client: TestClient, store: JobStore) -> None:
    store.close()
    store._reads = None  # type: ignore[assignment]
    answer = client.get("/v1/videos/video_x")
    body = error(answer, 500, "internal")
    assert "NoneType" not in body["message"]
    assert body["request_id"] == answer.headers["x-request-id"]


def test_a_number_beyond_all_bounds_is_a_bad_value(client: TestClient, png: bytes) -> None:
    for name, value in (("num_frames", "9" * 310), ("seconds", "1e308"), ("flow_shift", "1e-300"), ("fps", "9" * 400)):
        error(post(client, png, prompt="x", **{name: value}), 400, "invalid_value", name)


def test_a_missing_adapter_says_nothing_of_the_others(
    client: TestClient, png: bytes, publish: Callable[..., Published]
) -> None:
    publish("secret-project")
    told = error(post(client, png, prompt="x", lora="nothing"), 404, "adapter_not_found", "lora")["message"]
    assert "'nothing'" in told
    assert "secret" not in told


def test_a_damaged_keys_file_is_the_operators_matter(client: TestClient, config: ServeConfig) -> None:
    config.keys_path().write_text("{")
    assert error(client.get("/v1/videos/video_x"), 503, "keys_unreadable")["type"] == "server_error"
    assert client.get("/healthz").status_code == 200
    config.keys_path().unlink()
    error(client.get("/v1/videos/video_x"), 503, "keys_unreadable")


def test_a_full_disk_is_told_and_no_longer_ready(
    client: TestClient, config: ServeConfig, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serve.videos.READY_S", 0.0)
    monkeypatch.setattr("serve.videos.write_whole", full)
    refused = post(client, png, prompt="x")
    error(refused, 507, "insufficient_storage")
    assert refused.headers["x-should-retry"] == "false"
    monkeypatch.setattr("serve.videos.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    error(client.get("/readyz"), 507, "insufficient_storage")


def test_a_table_that_does_not_answer_may_have_taken_the_video(config: ServeConfig, key: str, png: bytes) -> None:
    class Away:
        async def __call__(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            raise ApiError(503, "unavailable", "the job table does not answer; try again")

    api = create_api(config, Away(), KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256)
    config.inputs().mkdir(parents=True)
    with TestClient(api, headers={"Authorization": f"Bearer {key}"}) as client:
        refused = post(client, png, prompt="x")
        assert "video_" in error(refused, 503, "outcome_unknown")["message"]
        assert refused.headers["x-should-retry"] == "false"
        (kept,) = config.inputs().iterdir()
        assert kept.stem in refused.json()["error"]["message"], "the job that may be there finds its first frame"
        error(client.get("/v1/videos/video_x"), 503, "unavailable")


def test_bodies_that_do_not_arrive_hold_up_nobody_else(config: ServeConfig, store: JobStore, key: str) -> None:
    limits = UploadLimits(seconds=2, per_key=2, at_once=3)
    config = config.model_copy(update={"uploads": limits})
    registry = Registry(Storage.open(config.storage))
    api = create_api(config, LocalJobs(store), KeyRing(config.keys_path()), registry, BASE_SHA256)
    other = create_key(config.keys_path(), "bob")

    async def unfinished() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async def flood() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:

            async def upload(of: str) -> Response:
                headers = {"Authorization": f"Bearer {of}", "Content-Type": "application/json"}
                return await client.post("/v1/videos", content=unfinished(), headers=headers)

            started = time.monotonic()
            uploads = []
            for of in (key, key, key, other, other):
                uploads.append(asyncio.create_task(upload(of)))
                await asyncio.sleep(0.1)
            assert (await client.get("/healthz")).status_code == 200
            asked = await client.get("/v1/videos/x", headers={"Authorization": f"Bearer {key}"})
            assert asked.status_code == 404
            answers = await asyncio.gather(*uploads)
            assert time.monotonic() - started < 30
            codes = [answer.json()["error"]["code"] for answer in answers]
            assert codes == ["body_timeout", "body_timeout", "too_many_uploads", "body_timeout", "too_many_uploads"]
            assert [answer.status_code for answer in answers] == [408, 408, 429, 408, 503]
            assert answers[0].headers["x-should-retry"] == "false"
            assert (await upload(key)).status_code == 408, "the slots are free again"

    asyncio.run(flood())


def test_the_description_has_both_bodies_the_key_and_every_answer(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    create = described["paths"]["/v1/videos"]["post"]
    bodies = create["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json"}
    form, fields = (bodies[kind]["schema"]["properties"]["input_reference"] for kind in bodies)
    assert (form["format"], set(fields["properties"])) == ("binary", {"image_url"})
    assert "$ref" not in str(bodies)
    assert set(create["responses"]) >= {"200", "400", "401", "404", "408", "413", "415", "429", "503", "507"}
    (scheme,) = described["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in described["paths"].items():
        assert all(("security" in operation) == path.startswith("/v1/") for operation in operations.values())
        assert not any("422" in operation["responses"] for operation in operations.values())
    content = described["paths"]["/v1/videos/{video_id}/content"]["get"]["responses"]
    assert {"200", "206", "409", "416"} <= set(content)
    assert list(content["200"]["content"]) == ["video/mp4", "image/webp", "image/jpeg"]


def test_a_create_that_waits_for_anothers_lock_is_made_once_under_its_key(
    config: ServeConfig, key: str, store: JobStore, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.app.DISPATCHER_TIMEOUT_S", 0.3)
    table = LocalJobs(store)

    async def remote(operation: str, *args: Any) -> Any:
        return await table(getattr(JobStore, operation), *args)

    jobs = ClientJobs(SimpleNamespace(run=SimpleNamespace(remote=remote)))
    api = create_api(config, jobs, KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256)
    other = sqlite3.connect(str(make_url(config.database_url()).database), isolation_level=None)
    with closing(other), TestClient(api, headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "1"}) as client:
        other.execute("BEGIN IMMEDIATE")
        refused = post(client, png, prompt="x")
        assert "with the same Idempotency-Key" in error(refused, 503, "outcome_unknown")["message"]
        assert "x-should-retry" not in refused.headers
        assert client.get("/readyz").status_code == 200, "reads wait for no writer"
        other.execute("ROLLBACK")
        monkeypatch.setattr("serve.app.DISPATCHER_TIMEOUT_S", 30.0)
        video_id = post(client, png, prompt="x").json()["id"]
        table._threads.shutdown()  # once the first create has ended, too
        assert store.ids() == {video_id}


def test_clients_see_a_name_and_no_folder_of_the_server(config: ServeConfig, tmp_path: Path) -> None:
    folder = config.model_copy(update={"model": str(tmp_path / "wan-tuned"), "served_name": None})
    assert folder.model_name() == "wan-tuned"
    assert folder.model_copy(update={"served_name": "film"}).model_name() == "film"
    assert config.model_name() == "drawing"
    asked = resolve(parse_create({"prompt": "x", "model": "wan-tuned"}), folder)
    assert asked.model == "wan-tuned"


def test_a_full_job_table_is_told_as_a_full_disk(
    client: TestClient, config: ServeConfig, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: JobStore, new: object) -> None:
        raise DatabaseFull("the disk of the job database is full")

    monkeypatch.setattr(JobStore, "create", full)
    answer = client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": ("a.png", png)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
    assert list(config.inputs().iterdir()) == []


def test_a_full_job_table_behind_the_dispatchers_handle_is_told_as_a_full_disk(
    config: ServeConfig, key: str, store: JobStore, png: bytes
) -> None:
    from ray.exceptions import RayTaskError

    async def remote(operation: str, *args: Any) -> Any:
        if operation == "create":  # as what a replica raises comes out of a handle
            full = RayTaskError("run", "Traceback ...", DatabaseFull("the disk of the job database is full"))
            raise pickle.loads(pickle.dumps(full)).as_instanceof_cause()
        return getattr(store, operation)(*args)

    jobs = ClientJobs(SimpleNamespace(run=SimpleNamespace(remote=remote)))
    api = create_api(config, jobs, KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256)
    with TestClient(api, headers={"Authorization": f"Bearer {key}"}) as client:
        error(post(client, png, prompt="x"), 507, "insufficient_storage")
    assert list(config.inputs().iterdir()) == []
