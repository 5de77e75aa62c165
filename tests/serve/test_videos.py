"""What is done with videos over HTTP beside making one: list, delete, remix, pictures, idempotency, bounds of keys."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cinesynth.data.video import read_frames, read_video, write_video
from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve import videos
from serve.api import create_api
from serve.auth import KeyRing, create_key
from serve.config import ServeConfig
from serve.content import Content, Contents
from serve.errors import ApiError
from serve.jobs import JobStore, LocalJobs
from serve.records import DatabaseFull
from tests.serve.asking import data_url, error, finish, post
from tests.serve.conftest import BASE_SHA256


def made(client: TestClient, png: bytes, **fields: Any) -> str:
    response = post(client, png, **{"prompt": "x", **fields})
    assert response.status_code == 200, response.text
    return response.json()["id"]


def other(client: TestClient, config: ServeConfig, name: str = "bob", **bounds: Any) -> None:
    client.headers["Authorization"] = f"Bearer {create_key(config.keys_path(), name, **bounds)}"


# --- list ----------------------------------------------------------------------------------------------------


def test_videos_are_listed_page_by_page(client: TestClient, config: ServeConfig, png: bytes) -> None:
    empty = client.get("/v1/videos").json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    a, b, c = (made(client, png, prompt=p) for p in "abc")
    page = client.get("/v1/videos", params={"limit": 2}).json()
    assert ([v["id"] for v in page["data"]], page["has_more"]) == ([c, b], True)
    assert (page["first_id"], page["last_id"]) == (c, b)
    rest = client.get("/v1/videos", params={"limit": 2, "after": b}).json()
    assert ([v["id"] for v in rest["data"]], rest["has_more"]) == ([a], False)
    oldest = client.get("/v1/videos", params={"order": "asc"}).json()
    assert [v["prompt"] for v in oldest["data"]] == ["a", "b", "c"]
    for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"limit": "x"}):
        error(client.get("/v1/videos", params=bad), 400, "invalid_value", next(iter(bad)))
    error(client.get("/v1/videos", params={"after": "video_x"}), 404, "not_found", "after")
    other(client, config)
    assert client.get("/v1/videos").json()["data"] == []
    error(client.get("/v1/videos", params={"after": a}), 404, "not_found", "after")


def test_polls_that_come_together_ask_the_table_once(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    video_id = made(client, png)
    asked: list[str] = []
    get = JobStore.get
    monkeypatch.setattr(JobStore, "get", lambda self, job_id: asked.append(job_id) or get(self, job_id))
    monkeypatch.setattr(videos, "LOOKED_S", 60.0)
    for _ in range(3):
        assert client.get(f"/v1/videos/{video_id}").json()["status"] == "queued"
    assert asked == [video_id]
    other(client, config)
    error(client.get(f"/v1/videos/{video_id}"), 404, "not_found", "id")
    assert asked == [video_id], "what is known answers another owner, too"
    monkeypatch.setattr(videos, "LOOKED_S", 0.0)
    unknown = "video_" + "0" * 32
    error(client.get(f"/v1/videos/{unknown}"), 404, "not_found", "id")
    error(client.get(f"/v1/videos/{unknown}"), 404, "not_found", "id")
    assert asked == [video_id, unknown, unknown]


# --- delete --------------------------------------------------------------------------------------------------


def test_a_deleted_video_is_gone_with_all_its_files(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = made(client, png)
    finish(config, store)
    for variant in ("thumbnail", "spritesheet"):
        assert client.get(f"/v1/videos/{video_id}/content", params={"variant": variant}).status_code == 200
    states = config.states()
    (states / f"{video_id}.safetensors").write_bytes(b"state")
    kept = made(client, png)
    deleted = client.delete(f"/v1/videos/{video_id}")
    assert deleted.json() == {"id": video_id, "object": "video.deleted", "deleted": True}
    left = [p.name for f in (config.inputs(), config.results(), states) for p in f.iterdir()]
    assert left == [f"{kept}.png"]
    error(client.get(f"/v1/videos/{video_id}"), 404, "not_found", "id")
    error(client.delete(f"/v1/videos/{video_id}"), 404, "not_found", "id")


def test_a_running_video_loses_its_lease_when_deleted(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = made(client, png)
    lease = store.lease_next("engine")
    assert lease is not None
    assert client.delete(f"/v1/videos/{video_id}").status_code == 200
    assert not store.heartbeat(video_id, lease.token, 50), "its engine stops"
    assert not store.complete(video_id, lease.token, "x.mp4", "00")


# --- remix ---------------------------------------------------------------------------------------------------


def test_a_remix_has_the_frame_and_settings_and_outlives_its_parent(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    parent = made(client, png, num_frames=9, size="64x96", guidance_scale=3, seed=5)
    response = client.post(f"/v1/videos/{parent}/remix", json={"prompt": "at night"})
    assert response.status_code == 200, response.text
    shown = response.json()
    assert (shown["prompt"], shown["remixed_from_video_id"]) == ("at night", parent)
    assert shown["status"] == "queued"
    before, after = store.get(parent), store.get(shown["id"])
    assert before is not None
    assert after is not None
    assert {**before.request, "prompt": "at night"} == after.request
    assert after.request["base_sha256"] == BASE_SHA256, "of the weights that it is to be made with"
    frame = (config.inputs() / before.image).read_bytes()
    assert (config.inputs() / after.image).read_bytes() == frame
    client.delete(f"/v1/videos/{parent}")
    assert (config.inputs() / after.image).read_bytes() == frame
    assert client.get(f"/v1/videos/{shown['id']}").json()["remixed_from_video_id"] == parent


def test_a_remix_of_a_failed_one_works_and_without_its_frame_it_is_refused(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    parent = made(client, png)
    lease = store.lease_next("engine")
    assert lease is not None
    store.fail(parent, lease.token, "oom", "too big")
    assert client.post(f"/v1/videos/{parent}/remix", json={"prompt": "y"}).status_code == 200
    (config.inputs() / f"{parent}.png").unlink()
    refused = client.post(f"/v1/videos/{parent}/remix", json={"prompt": "y"})
    error(refused, 409, "frame_gone")
    assert refused.headers["x-should-retry"] == "false"
    error(client.post(f"/v1/videos/{parent}/remix", json={"prompt": " "}), 400, "invalid_value", "prompt")
    error(client.post(f"/v1/videos/{parent}/remix", json={}), 400, "invalid_value", "prompt")
    error(client.post(f"/v1/videos/{parent}/remix", json={"prompt": "y", "seed": 1}), 400, "invalid_value", "seed")
    error(client.post(f"/v1/videos/{parent}/remix", data={"prompt": "y"}), 415, "unsupported_media_type")
    error(client.post("/v1/videos/video_x/remix", json={"prompt": "y"}), 404, "not_found", "id")


def test_a_remix_of_what_is_no_longer_served_is_refused(
    client: TestClient, config: ServeConfig, store: JobStore, key: str, png: bytes
) -> None:
    parent = made(client, png, size="64x96")
    fewer = config.model_copy(update={"sizes": [(64, 96)]})
    api = create_api(
        fewer, LocalJobs(store), KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256
    )
    asked = TestClient(api, headers=dict(client.headers))
    assert asked.post(f"/v1/videos/{parent}/remix", json={"prompt": "y"}).status_code == 400


# --- the same request again ----------------------------------------------------------------------------------


def test_a_request_that_is_sent_again_makes_no_second_video(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    client.headers["Idempotency-Key"] = "order 66"
    first, again = made(client, png, seconds="1"), made(client, png, seconds="1")
    assert first == again
    assert store.backlog().queued == 1
    assert len(list(config.inputs().iterdir())) == 1
    changed = io.BytesIO()
    Image.new("RGB", (60, 40), (1, 2, 3)).save(changed, "PNG")
    for image, fields in ((png, {"seconds": "0.5"}), (changed.getvalue(), {"seconds": "1"})):
        refused = post(client, image, prompt="x", **fields)
        error(refused, 409, "idempotency_key_reused", "Idempotency-Key")
        assert refused.headers["x-should-retry"] == "false"
    finish(config, store)
    assert made(client, png, seconds="1") == first, "also when it has ended"
    other(client, config)
    assert made(client, png, seconds="0.5") != first, "the keys of another owner are others"


def test_two_equal_requests_at_once_make_one_video(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    client.headers["Idempotency-Key"] = "k"
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: made(client, png), range(4)))
    assert len(ids) == 1
    assert store.backlog().queued == 1
    assert [p.stem for p in config.inputs().iterdir()] == list(ids), "the frames of the others are gone"


def test_a_full_queue_answers_a_request_that_was_taken(client: TestClient, png: bytes) -> None:
    client.headers["Idempotency-Key"] = "first"
    first = made(client, png)
    for n in range(2):
        client.headers["Idempotency-Key"] = f"{n}"
        made(client, png)
    client.headers["Idempotency-Key"] = "late"
    error(post(client, png, prompt="x"), 429, "queue_full")
    client.headers["Idempotency-Key"] = "first"
    assert made(client, png) == first


def test_a_remix_has_idempotency_keys_too(client: TestClient, store: JobStore, png: bytes) -> None:
    parent = made(client, png)
    client.headers["Idempotency-Key"] = "k"
    ids = [client.post(f"/v1/videos/{parent}/remix", json={"prompt": "y"}).json()["id"] for _ in range(2)]
    assert ids[0] == ids[1]
    error(
        client.post(f"/v1/videos/{parent}/remix", json={"prompt": "z"}),
        409,
        "idempotency_key_reused",
        "Idempotency-Key",
    )
    error(post(client, png, prompt="y"), 409, "idempotency_key_reused", "Idempotency-Key")


@pytest.mark.parametrize("given", [b"", b"x" * 256, b"tab\there", b"\xe9"], ids=["empty", "long", "tab", "accent"])
def test_a_bad_idempotency_key_is_refused(client: TestClient, png: bytes, given: bytes) -> None:
    body = {"prompt": "x", "input_reference": {"image_url": data_url(png)}}
    sent = client.post("/v1/videos", json=body, headers={b"Idempotency-Key": given})  # type: ignore[dict-item]
    error(sent, 400, "invalid_value", "Idempotency-Key")
    assert client.post("/v1/videos", json=body, headers={"Idempotency-Key": "x" * 255}).status_code == 200


def test_an_unanswered_create_may_be_sent_again_with_a_key(config: ServeConfig, key: str, png: bytes) -> None:
    class Away:
        async def __call__(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            if operation is JobStore.find:
                return None
            raise ApiError(503, "unavailable", "the job table does not answer; try again")

    api = create_api(config, Away(), KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256)
    config.inputs().mkdir(parents=True)
    client = TestClient(api, headers={"Authorization": f"Bearer {key}"})
    assert post(client, png, prompt="x").headers["x-should-retry"] == "false"
    client.headers["Idempotency-Key"] = "k"
    refused = post(client, png, prompt="x")
    error(refused, 503, "outcome_unknown")
    assert "x-should-retry" not in refused.headers
    assert refused.headers["retry-after"] == "5"


def test_a_video_that_was_queued_is_answered_though_its_place_is_not_known(
    config: ServeConfig, key: str, store: JobStore, png: bytes
) -> None:
    local = LocalJobs(store)

    class Failing:
        async def __call__(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            if operation is JobStore.place:
                raise ApiError(503, "unavailable", "the job table does not answer; try again")
            return await local(operation, *args, **kwargs)

    registry = Registry(Storage.open(config.storage))
    api = create_api(config, Failing(), KeyRing(config.keys_path()), registry, BASE_SHA256)
    created = post(TestClient(api, headers={"Authorization": f"Bearer {key}"}), png, prompt="x")
    assert created.status_code == 200
    assert "openai-poll-after-ms" not in created.headers


# --- pictures ------------------------------------------------------------------------------------------------


def test_a_thumbnail_and_a_sheet_are_made_of_the_finished_video(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = made(client, png, num_frames=33)
    error(client.get(f"/v1/videos/{video_id}/content?variant=thumbnail"), 409, "not_ready")
    lease = store.lease_next("engine")
    assert lease is not None
    frames = np.repeat((np.arange(33, dtype=np.uint8) * 7)[:, None, None, None], 64 * 96 * 3, -1)
    name = f"{video_id}.{lease.token}.mp4"
    path = write_video(config.results() / name, frames.reshape(33, 64, 96, 3))
    assert store.complete(video_id, lease.token, name, "00")
    shown, _ = read_video(path)
    thumbnail = client.get(f"/v1/videos/{video_id}/content?variant=thumbnail")
    assert thumbnail.headers["content-type"] == "image/webp"
    picture = Image.open(io.BytesIO(thumbnail.content))
    assert (picture.format, picture.size) == ("WEBP", (96, 64))
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - shown[0]).max() < 6
    sheet = client.get(f"/v1/videos/{video_id}/content?variant=spritesheet")
    assert sheet.headers["content-type"] == "image/jpeg"
    cells = np.asarray(Image.open(io.BytesIO(sheet.content)))
    assert cells.shape == (4 * 64, 4 * 96, 3)
    wanted = np.linspace(0, 32, 16).round().astype(int)
    seen = [cells[n // 4 * 64 + 32, n % 4 * 96 + 48].mean() for n in range(16)]
    assert np.abs(np.array(seen) - shown[wanted].mean(axis=(1, 2, 3))).max() < 6, "evenly spaced, row by row"
    kept = {p.name for p in config.results().iterdir()}
    assert kept == {name, f"{name}.thumbnail.webp", f"{name}.spritesheet.jpg"}
    assert {n.partition(".")[0] for n in kept} == {video_id}, "the sweep knows them by the job's id"
    part = client.get(f"/v1/videos/{video_id}/content?variant=spritesheet", headers={"Range": "bytes=0-1"})
    assert (part.status_code, part.content) == (206, b"\xff\xd8")
    path.unlink()
    error(client.get(f"/v1/videos/{video_id}/content?variant=thumbnail"), 404, "expired")


@pytest.mark.parametrize("variant", ["thumbnail", "spritesheet"])
def test_a_video_that_is_deleted_while_its_picture_is_made_is_a_404(
    client: TestClient,
    config: ServeConfig,
    store: JobStore,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
) -> None:
    video_id = made(client, png)
    finish(config, store)

    def deleted(path: Path, wanted: list[int]) -> Any:
        path.unlink()
        return read_frames(path, wanted)

    monkeypatch.setattr("serve.content.read_frames", deleted)
    error(client.get(f"/v1/videos/{video_id}/content", params={"variant": variant}), 404, "expired")
    assert list(config.results().iterdir()) == []


def test_a_picture_that_waited_for_another_is_not_made_of_a_deleted_video(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = config.results() / "a.1.mp4"
    write_video(result, np.zeros((5, 64, 96, 3), np.uint8))
    monkeypatch.setattr("serve.content._make", lambda *_: pytest.fail("it was read"))

    async def ask() -> None:
        contents = Contents()
        async with contents._making:
            asked = asyncio.create_task(contents.response(result, "a", "thumbnail"))
            await asyncio.sleep(0)
            result.unlink()
        with pytest.raises(ApiError) as refusal:
            await asked
        assert (refusal.value.status, refusal.value.code) == (404, "expired")

    asyncio.run(ask())


@pytest.mark.parametrize("deleted", [False, True])
def test_one_picture_is_made_at_a_time_though_who_asked_goes_away(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    result = config.results() / "a.1.mp4"
    write_video(result, np.zeros((5, 64, 96, 3), np.uint8))
    begun, go_on = threading.Event(), threading.Event()
    reads: list[Path] = []

    def slow(path: Path, wanted: list[int]) -> Any:
        frames = read_frames(path, wanted)
        reads.append(path)
        begun.set()
        assert go_on.wait(30)
        if deleted:
            path.unlink()
        return frames

    monkeypatch.setattr("serve.content.read_frames", slow)

    async def ask() -> None:
        contents = Contents()
        gone = asyncio.create_task(contents.response(result, "a", "thumbnail"))
        assert await asyncio.to_thread(begun.wait, 30)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        other = asyncio.create_task(contents.response(result, "a", "spritesheet" if deleted else "thumbnail"))
        await asyncio.sleep(0.1)
        assert len(reads) == 1
        go_on.set()
        if deleted:
            with pytest.raises(ApiError, match="no longer kept"):
                await other
        else:
            await other

    try:
        asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        go_on.set()
    assert len(reads) == 1
    kept = [] if deleted else [result.name, f"{result.name}.thumbnail.webp"]
    assert sorted(p.name for p in config.results().iterdir()) == kept


@pytest.mark.parametrize("moment", ["stat", "open"])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}], ids=["whole", "range"])
@pytest.mark.parametrize("variant", ["video", "thumbnail"])
def test_a_video_that_is_deleted_as_its_answer_begins_is_a_404(
    client: TestClient,
    config: ServeConfig,
    store: JobStore,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    headers: dict[str, str],
    variant: str,
) -> None:
    video_id = made(client, png)
    finish(config, store)
    address = f"/v1/videos/{video_id}/content?variant={variant}"
    whole = client.get(address)
    assert (whole.status_code, int(whole.headers["content-length"])) == (200, len(whole.content))
    assert client.head(address).headers["content-length"] == whole.headers["content-length"]

    def delete() -> None:
        for path in config.results().iterdir():
            path.unlink()

    begin, call = Content.__init__, Content.__call__

    def late_begin(self: Content, *args: Any, **kwargs: Any) -> None:
        delete()
        begin(self, *args, **kwargs)

    async def late_call(self: Content, *args: Any) -> None:
        delete()
        await call(self, *args)

    if moment == "stat":
        monkeypatch.setattr(Content, "__init__", late_begin)
    else:
        monkeypatch.setattr(Content, "__call__", late_call)
    error(client.get(address, headers=headers), 404, "expired")


def test_a_damaged_video_is_no_deleted_one(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    video_id = made(client, png)
    finish(config, store)
    (path,) = config.results().iterdir()
    path.write_bytes(b"no video")
    error(client.get(f"/v1/videos/{video_id}/content?variant=thumbnail"), 500, "internal")


# --- readiness -----------------------------------------------------------------------------------------------


def ask_ready(config: ServeConfig, key: str, jobs: Any, times: int) -> list[int]:
    """The statuses of so many questions at once."""
    config.inputs().mkdir(parents=True, exist_ok=True)
    api = create_api(config, jobs, KeyRing(config.keys_path()), Registry(Storage.open(config.storage)), BASE_SHA256)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            return [r.status_code for r in await asyncio.gather(*(client.get("/readyz") for _ in range(times)))]

    async def twice() -> list[int]:
        first = await ask()
        return first + await ask()

    return asyncio.run(twice())


class Slow:
    """A job table that takes its time, counts how often it is asked, and may refuse."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal, self.asked = refusal, 0

    async def __call__(self, *_: Any, **__: Any) -> None:
        self.asked += 1
        await asyncio.sleep(0.05)
        if self.refusal is not None:
            raise self.refusal


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(None, 200), (ApiError(503, "unavailable", "away"), 503), (DatabaseFull("full"), 507), (OSError("bug"), 500)],
)
def test_a_flood_of_questions_asks_the_job_table_once(
    config: ServeConfig, key: str, monkeypatch: pytest.MonkeyPatch, refusal: Exception | None, status: int
) -> None:
    monkeypatch.setattr("serve.videos.READY_S", 60.0)
    jobs = Slow(refusal)
    assert ask_ready(config, key, jobs, 50) == [status] * 100
    assert jobs.asked == 1


def test_an_answer_is_found_anew_after_a_while_and_the_disk_is_asked_in_a_thread(
    config: ServeConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.videos.READY_S", 0.0)
    threads = []

    def usage(_: Path) -> Any:
        threads.append(threading.current_thread())
        return SimpleNamespace(free=10**12 if len(threads) > 1 else 10)

    monkeypatch.setattr("serve.videos.shutil.disk_usage", usage)
    assert ask_ready(config, key, Slow(), 3) == [507] * 3 + [200] * 3
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_with_less_room_than_is_to_stay_free_no_video_is_taken(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, asked = [config.min_free_bytes], []
    monkeypatch.setattr(
        "serve.videos.shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=free[0])
    )
    monkeypatch.setattr(videos, "READY_S", 0.0)
    client.headers["Idempotency-Key"] = "first"
    first = made(client, png)
    assert client.get("/readyz").status_code == 200
    free[0] -= 1
    assert made(client, png) == first, "it is in the table already"
    del client.headers["Idempotency-Key"]
    asked.clear()
    monkeypatch.setattr(videos, "READY_S", 60.0)
    for _ in range(3):
        error(post(client, png, prompt="y"), 507, "insufficient_storage")
        error(client.post(f"/v1/videos/{first}/remix", json={"prompt": "y"}), 507, "insufficient_storage")
        error(client.get("/readyz"), 507, "insufficient_storage")
    assert asked == [config.inputs()], "once in a while"
    assert [path.name for path in config.inputs().iterdir()] == [f"{first}.png"]
    assert store.backlog().queued == 1


# --- models, keys, ids, refusals -----------------------------------------------------------------------------


def test_the_model_is_shown_under_its_served_name(config: ServeConfig, store: JobStore, key: str) -> None:
    config = config.model_copy(update={"served_name": "studio/film-1"})
    registry = Registry(Storage.open(config.storage))
    api = create_api(config, LocalJobs(store), KeyRing(config.keys_path()), registry, BASE_SHA256)
    client = TestClient(api, headers={"Authorization": f"Bearer {key}"})
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("studio/film-1", "model", "cinesynth")
    assert model["sizes"] == ["96x64", "64x96"]
    assert (model["num_frames"][-1], model["fps"], model["max_steps"]) == (33, 16, 100)
    assert model["defaults"]["num_inference_steps"] == 4
    assert client.get("/v1/models/studio/film-1").json() == model
    error(client.get("/v1/models/sora-2"), 404, "model_not_found", "model")


def test_a_key_without_the_scope_makes_no_videos(client: TestClient, config: ServeConfig, png: bytes) -> None:
    video_id = made(client, png)
    other(client, config, "reviewer", scopes=["review"])
    told = error(post(client, png, prompt="x"), 403, "scope_missing")
    assert told["type"] == "permission_error"
    for method, path in [
        ("GET", ""),
        ("GET", f"/{video_id}"),
        ("DELETE", f"/{video_id}"),
        ("GET", f"/{video_id}/content"),
        ("GET", f"/{video_id}/events"),
        ("POST", f"/{video_id}/remix"),
    ]:
        error(client.request(method, f"/v1/videos{path}"), 403, "scope_missing")
    assert client.get("/v1/models").status_code == 200


def test_work_beyond_the_keys_bound_is_refused_before_it_is_queued(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    small = store.get(made(client, png, num_frames=5))
    assert small is not None
    other(client, config, "intern", max_flops_per_job=small.work)
    cheap = made(client, png, num_frames=5)
    told = error(post(client, png, prompt="x", num_frames=9), 400, "too_much_work")
    assert told["predicted_flops"] > told["max_flops_per_job"] == small.work
    assert store.backlog().queued == 2
    assert client.post(f"/v1/videos/{cheap}/remix", json={"prompt": "y"}).status_code == 200


def test_width_and_height_are_another_way_to_give_the_size(client: TestClient, png: bytes) -> None:
    assert post(client, png, prompt="x", width=64, height=96).json()["size"] == "64x96"
    assert post(client, png, prompt="x", width=64, height=96, size="64x96").json()["size"] == "64x96"
    assert post(client, png, prompt="x", width=64, height=96, size="96x64").status_code == 400
    assert "together" in post(client, png, prompt="x", width=64).json()["error"]["message"]
    error(post(client, png, prompt="x", width=640, height=96), 400, "shape_not_allowed", "width")


def test_a_client_is_told_when_to_look_again(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "LOOKED_S", 0.0)
    created = post(client, png, prompt="x")
    video_id = created.json()["id"]
    assert int(created.headers["openai-poll-after-ms"]) == 6000, "a tenth of the minute that is assumed"
    assert int(client.get(f"/v1/videos/{video_id}").headers["openai-poll-after-ms"]) == 6000
    for _ in range(2):
        made(client, png)
    last = client.get("/v1/videos?limit=1").json()["last_id"]
    assert int(client.get(f"/v1/videos/{last}").headers["openai-poll-after-ms"]) == 10_000
    finish(config, store)
    assert "openai-poll-after-ms" not in client.get(f"/v1/videos/{video_id}").headers


def test_every_answer_and_log_line_bears_the_requests_id(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"X-Request-Id": "trace-1.a:b_C"}
    for path in ("/healthz", "/v1/videos", "/v1/nothing", "/v1/videos/video_x"):
        assert client.get(path, headers=own).headers.get_list("x-request-id") == ["trace-1.a:b_C"]
    made_up = {client.get("/healthz").headers["x-request-id"] for _ in range(2)}
    assert len(made_up) == 2
    for bad in ("a b", "x" * 129, "<script>", "a\tb"):
        assert client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad
    with caplog.at_level(logging.INFO):
        post(client, png, prompt="x", lora="nothing")
        config.keys_path().write_text("{")
        told = client.get("/v1/videos/video_x", headers=own).json()["error"]
    assert told["request_id"] == "trace-1.a:b_C"
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("serve.")]
    assert len(lines) >= 3
    assert all("[request " in line for line in lines)
    assert any(line.endswith("[request trace-1.a:b_C]") for line in lines)


def test_what_openai_has_and_this_service_has_not_says_what_to_do(client: TestClient, png: bytes) -> None:
    for method, path in [
        ("POST", "/v1/videos/edits"),
        ("POST", "/v1/videos/extensions"),
        ("POST", "/v1/videos/characters"),
        ("GET", "/v1/videos/characters/char_1"),
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files/file-1/content"),
        ("DELETE", "/v1/files/file-1"),
    ]:
        assert ":" in error(client.request(method, path), 404, "not_supported")["message"]
    body = {"prompt": "x", "input_reference": {"file_id": "file-1"}}
    told = error(client.post("/v1/videos", json=body), 400, "not_supported", "input_reference.file_id")
    assert "data: URL" in told["message"]
    form = {"prompt": (None, "x"), "input_reference[file_id]": (None, "file-1")}
    error(client.post("/v1/videos", files=form), 400, "not_supported", "input_reference.file_id")
    form = {"prompt": (None, "x"), "input_reference[image_url]": (None, data_url(png))}
    assert client.post("/v1/videos", files=form).status_code == 200, "as OpenAI's client sends a reference"
    error(client.post("/v1/videos", files={**form, "input_reference": png}), 400, "invalid_value", "input_reference")
