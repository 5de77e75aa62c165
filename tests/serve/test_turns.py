"""Turns at the decoder: owners alternate, none waits for long, and who goes away leaves it free."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi.testclient import TestClient

from cinesynth.registry import Registry
from cinesynth.storage import Storage
from serve.api import create_api
from serve.auth import KeyRing, create_key
from serve.config import ServeConfig
from serve.errors import ApiError
from serve.jobs import JobStore, LocalJobs
from serve.turns import Turns
from tests.serve.asking import error, post
from tests.serve.conftest import BASE_SHA256


def test_owners_alternate_however_many_one_of_them_sends() -> None:
    order: list[str] = []

    async def work(turns: Turns, owner: str) -> None:
        async with turns.turn(owner):
            order.append(owner)
            await asyncio.sleep(0)

    async def flood() -> None:
        turns = Turns("it", 10)
        await asyncio.gather(*(work(turns, owner) for owner in ("a", "a", "a", "a", "b", "c", "b")))

    asyncio.run(flood())
    assert order[:3] == ["a", "b", "c"]
    assert order[3:5] == ["a", "b"]
    assert order[5:] == ["a", "a"]


def test_who_waits_too_long_is_refused_and_who_goes_away_leaves_the_line() -> None:
    async def wait() -> None:
        turns = Turns("the first frame", 0.05)
        async with turns.turn("a"):
            for owner in ("b", "a", "b"):
                with pytest.raises(ApiError) as refusal:
                    async with turns.turn(owner):
                        pytest.fail("two at once")
                assert (refusal.value.status, refusal.value.code) == (503, "busy")
                assert refusal.value.headers == {"Retry-After": "5"}
            gone = asyncio.create_task(turns.turn("c").__aenter__())
            await asyncio.sleep(0)
            gone.cancel()
            del refusal, gone
        for owner in ("a", "b", "c"):
            async with turns.turn(owner):
                pass
        gc.collect()
        assert len(turns._of) == 0, "nothing is kept of an owner who is served"

    asyncio.run(wait())


def test_a_first_frame_that_takes_long_refuses_the_others_in_time(
    config: ServeConfig, store: JobStore, key: str, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, done = threading.Event(), threading.Event()

    def slow(*_: object) -> bytes:
        decoding.set()
        assert done.wait(30)
        return png

    monkeypatch.setattr("serve.videos.frame_png", slow)
    monkeypatch.setattr("serve.videos.DECODE_WAIT_S", 0.2)
    registry = Registry(Storage.open(config.storage))
    api = create_api(config, LocalJobs(store), KeyRing(config.keys_path()), registry, BASE_SHA256)
    bob = create_key(config.keys_path(), "bob")
    with TestClient(api, headers={"Authorization": f"Bearer {key}"}) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, png, prompt="x")
        assert decoding.wait(30)
        client.headers["Authorization"] = f"Bearer {bob}"
        refused = post(client, png, prompt="x")
        error(refused, 503, "busy")
        assert refused.headers["retry-after"] == "5"
        assert client.get("/v1/videos").status_code == 200
        done.set()
        assert first.result(30).status_code == 200
        assert post(client, png, prompt="x").status_code == 200


def test_a_client_that_goes_away_keeps_its_turn_and_slot_until_its_frame_is_decoded(
    config: ServeConfig, store: JobStore, key: str, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, done = threading.Event(), threading.Event()
    at_once: list[int] = []

    def slow(*_: object) -> bytes:
        at_once.append(1)
        decoding.set()
        assert done.wait(30)
        return png

    monkeypatch.setattr("serve.videos.frame_png", slow)
    monkeypatch.setattr("serve.videos.DECODE_WAIT_S", 0.2)
    config = config.model_copy(update={"uploads": config.uploads.model_copy(update={"per_key": 1})})
    registry = Registry(Storage.open(config.storage))
    api = create_api(config, LocalJobs(store), KeyRing(config.keys_path()), registry, BASE_SHA256)
    bob = create_key(config.keys_path(), "bob")

    async def send(client: httpx.AsyncClient, of: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {of}"}
        files = {"input_reference": ("frame", png)}
        return await client.post("/v1/videos", data={"prompt": "x"}, files=files, headers=headers)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            gone = asyncio.create_task(send(client, key))
            assert await asyncio.to_thread(decoding.wait, 30)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            error(await send(client, key), 429, "too_many_uploads")
            error(await send(client, bob), 503, "busy")
            assert len(at_once) == 1, "no second thread"
            done.set()
            assert (await send(client, bob)).status_code == 200
            made = await send(client, key)
            assert made.status_code == 200

    try:
        asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        done.set()
    assert len(list(config.inputs().iterdir())) == 2, "the frame that no job was made of is gone"
