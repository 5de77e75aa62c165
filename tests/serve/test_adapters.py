"""`lora`: which adapters a request gets, in which order, and which are refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from cinesynth.registry import Published, Registry
from cinesynth.storage import Storage
from serve.adapters import Adapters, parse_lora
from serve.api import create_api
from serve.auth import KeyRing
from serve.config import ServeConfig
from serve.errors import ApiError
from serve.jobs import JobStore, LocalJobs
from serve.schema import JobRequest, ServedAdapter, parse_create, resolve
from tests.serve.asking import error, post
from tests.serve.conftest import BASE_SHA256

Publish = Callable[..., Published]


@pytest.fixture
def adapters(config: ServeConfig) -> Adapters:
    return Adapters(Registry(Storage.open(config.storage)), BASE_SHA256)


def refused(adapters: Adapters, lora: str) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        adapters.chain(lora)
    assert refusal.value.param == "lora"
    return refusal.value


def test_several_adapters_are_applied_in_order_each_at_its_scale(adapters: Adapters, publish: Publish) -> None:
    a, b = publish("a"), publish("b")
    assert adapters.chain(f"{a.ref}:0.8, b@latest") == [
        ServedAdapter(ref=a.ref, sha256=a.sha256, scale=0.8),
        ServedAdapter(ref=b.ref, sha256=b.sha256, scale=1.0),
    ]
    assert [x.ref for x in adapters.chain("b,a")] == [b.ref, a.ref]


def test_what_an_adapter_was_trained_on_top_of_is_found_by_its_hash(adapters: Adapters, publish: Publish) -> None:
    style = publish("style")
    motion = publish("motion", parents=[(style, 0.7)])
    light = publish("light", parents=[(style, 0.7), (motion, 1.0)])
    chain = adapters.chain("light:2")
    assert [(x.ref, x.sha256, x.scale) for x in chain] == [
        (style.ref, style.sha256, 0.7),
        (motion.ref, motion.sha256, 1.0),
        (light.ref, light.sha256, 2.0),
    ]
    assert adapters.chain("style:0.7,motion,light:2") == chain, "named and below another: applied once"
    assert adapters.chain("motion,motion,light:2") == chain


def test_a_chain_that_is_not_what_was_trained_is_refused(adapters: Adapters, publish: Publish) -> None:
    style, other = publish("style"), publish("other")
    publish("motion", parents=[(style, 1.0)])
    unpublished = Published("gone", "1", "00", {}, {"sha256": "77" * 32})
    publish("orphan", parents=[(unpublished, 1.0)])
    for lora, told in [
        ("style:0.5,motion", "at the scales 0.5 and 1"),
        ("other,motion", "was trained on top of"),
        ("orphan", "7777777777"),
        ("style,style:2", "at the scales 1 and 2"),
    ]:
        refusal = refused(adapters, lora)
        assert refusal.status == 400
        assert told in refusal.message
        assert "/srv" not in refusal.message
    assert other.ref


def test_the_base_is_checked_without_telling_folders(adapters: Adapters, publish: Publish) -> None:
    publish("foreign", base="cd" * 32)
    refusal = refused(adapters, "foreign")
    assert (refusal.status, refusal.code) == (400, "adapter_mismatch")
    assert "cdcdcdcdcdcd" in refusal.message
    assert "/srv" not in refusal.message
    assert [x.ref for x in adapters.chain(publish("imported", base="").ref)], "its layers tell, when it is loaded"


def test_at_most_eight_are_applied(adapters: Adapters, publish: Publish) -> None:
    below = [(publish(f"p{n}"), 1.0) for n in range(8)]
    publish("top", parents=below)
    names = [f"p{n}" for n in range(8)]
    assert len(adapters.chain(",".join(names))) == 8
    assert "9 adapters" in refused(adapters, "top").message
    assert "9 adapters" in refused(adapters, ",".join([*names, "p0"])).message


@pytest.mark.parametrize("lora", ["a:0", "a:-1", "a:4.1", "a:nan", "a:inf", "a:x", "a:", ",", "a,,b", ":1", "a:1:1"])
def test_bad_scales_and_empty_parts_are_named(lora: str) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_lora(lora)
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (400, "invalid_value", "lora")


def test_the_job_records_the_chain_and_its_key(
    client: TestClient, store: JobStore, png: bytes, publish: Publish
) -> None:
    style = publish("style")
    motion = publish("motion", parents=[(style, 1.0)])
    job = store.get(post(client, png, prompt="x", lora="motion:0.5").json()["id"])
    assert job is not None
    request = JobRequest.model_validate(job.request)
    assert [(a.ref, a.scale) for a in request.adapters] == [(style.ref, 1.0), (motion.ref, 0.5)]
    assert job.adapter == request.adapters_key()
    other = request.model_copy(update={"adapters": request.adapters[::-1]})
    keys = {request.adapters_key(), other.adapters_key(), None, style.ref}
    assert len(keys) == 4, "another order is another function"
    assert max(len(key or "") for key in keys) <= 200


def test_rows_of_one_adapter_still_parse(config: ServeConfig) -> None:
    row = resolve(parse_create({"prompt": "x"}), config).model_dump(mode="json")
    del row["adapters"]
    old = JobRequest.model_validate({**row, "adapter": "a@1", "adapter_sha256": "ab"})
    assert old.adapters == [ServedAdapter(ref="a@1", sha256="ab")]
    assert old.adapters_key() == "a@1"
    assert JobRequest.model_validate({**row, "adapter": None, "adapter_sha256": None}).adapters_key() is None


def test_the_list_shows_the_adapters_of_this_base_only(client: TestClient, publish: Publish) -> None:
    style = publish("style")
    motion = publish("motion", parents=[(style, 0.5)])
    publish("foreign", base="cd" * 32)
    listed = client.get("/v1/adapters").json()
    assert listed["object"] == "list"
    assert [a["id"] for a in listed["data"]] == [motion.ref, style.ref]
    assert listed["data"][0]["parents"] == [{"id": style.ref, "scale": 0.5}]
    assert listed["data"][0]["aliases"] == ["latest"]
    assert listed["data"][0]["created_at"] > 1_700_000_000
    assert "/" not in str(listed["data"]), "no folder of the server"


def test_an_adapter_that_is_missing_is_a_404(client: TestClient, png: bytes, publish: Publish) -> None:
    publish("style")
    for lora in ("style,nothing", "../../etc@passwd", "/etc/passwd", "runs/style"):
        error(post(client, png, prompt="x", lora=lora), 404, "adapter_not_found", "lora")


def test_parents_are_found_in_what_is_read_for_the_list(
    client: TestClient, publish: Publish, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = publish("style")
    publish("a-motion", parents=[(style, 1.0)])
    for n in range(3):
        unpublished = Published("gone", "1", "00", {}, {"sha256": f"{n}7" * 32})
        publish(f"orphan-{n}", parents=[(unpublished, 1.0)])
    assert adapters.registry.find(style.card["sha256"]) == style.ref
    monkeypatch.setattr(Registry, "find", lambda *_: pytest.fail("the registry was searched for one parent"))
    below = {a["id"].partition("@")[0]: a["parents"] for a in client.get("/v1/adapters").json()["data"]}
    assert below["a-motion"] == [{"id": style.ref, "scale": 1.0}]
    assert [below[f"orphan-{n}"] for n in range(3)] == [[{"id": None, "scale": 1.0}]] * 3


def test_who_waits_for_the_list_holds_no_thread(
    config: ServeConfig, store: JobStore, key: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = publish("style")
    registry = Registry(Storage.open(config.storage))
    api = create_api(config, LocalJobs(store), KeyRing(config.keys_path()), registry, BASE_SHA256)
    read, go, reads = Adapters._read, threading.Event(), []

    def slow(self: Adapters) -> Any:
        reads.append(threading.current_thread())
        assert go.wait(30)
        return read(self)

    monkeypatch.setattr(Adapters, "_read", slow)

    async def ask() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            lists = [asyncio.create_task(client.get("/v1/adapters")) for _ in range(100)]
            while not reads:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            assert (await client.get("/v1/models")).status_code == 200
            assert time.monotonic() - began < 5
            go.set()
            for answer in await asyncio.gather(*lists):
                assert [a["id"] for a in answer.json()["data"]] == [style.ref]

    asyncio.run(ask())
    assert len(reads) == 1


@pytest.mark.parametrize(
    "damage", ["{", "[]", "{}", '{"sha256": 1, "files": {}}', '{"sha256": "00", "files": []}', None]
)
def test_files_of_the_registry_that_cannot_be_read_are_the_operators_matter(
    client: TestClient, config: ServeConfig, png: bytes, publish: Publish, damage: str | None
) -> None:
    style, other = publish("style"), publish("other")
    made = post(client, png, prompt="x", lora="style").json()["id"]
    home = Path(config.storage) / "registry" / "style"
    if damage is None:
        (card,) = home.glob("files/*/card.json")
        card.unlink()
    else:
        (home / f"versions/{style.version}.json").write_text(damage)
    for answer in (
        post(client, png, prompt="x", lora="style"),
        client.post(f"/v1/videos/{made}/remix", json={"prompt": "y"}),
    ):
        error(answer, 503, "adapter_unreadable")
        assert answer.headers["retry-after"] == "30"
        assert config.storage not in answer.text
    assert [a["id"] for a in client.get("/v1/adapters").json()["data"]] == [other.ref]
    assert post(client, png, prompt="x", lora="other").status_code == 200


def test_an_alias_that_cannot_be_read_is_the_operators_matter(
    client: TestClient, config: ServeConfig, png: bytes, publish: Publish
) -> None:
    style = publish("style")
    (Path(config.storage) / "registry/style/aliases/latest.json").write_text('{"v": 1}')
    error(post(client, png, prompt="x", lora="style"), 503, "adapter_unreadable")
    assert post(client, png, prompt="x", lora=style.ref).status_code == 200
    assert client.get("/v1/adapters").json()["data"] == []


def test_a_video_tells_its_adapters_as_a_request_names_them(client: TestClient, png: bytes, publish: Publish) -> None:
    style = publish("style")
    motion = publish("motion", parents=[(style, 0.7)])
    shown = post(client, png, prompt="x", lora="motion:2", seed=5, guidance_scale=1.5, num_inference_steps=3).json()
    assert shown["lora"] == f"{style.ref}:0.7,{motion.ref}:2"
    assert (shown["seed"], shown["num_inference_steps"], shown["guidance_scale"]) == (5, 3, 1.5)
    again = post(client, png, prompt="x", lora=shown["lora"]).json()
    assert again["lora"] == shown["lora"], "asked for again it is the same"
    plain = post(client, png, prompt="x").json()
    assert plain["lora"] is None
    assert client.get(f"/v1/videos/{plain['id']}").json()["seed"] == plain["seed"], "one was drawn"
    assert client.get("/v1/videos").json()["data"][0] == plain
