"""Bodies that are made to be much work: refused before the work is done."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from serve.bodies import FORM_BYTES, MAX_FIELDS, _parse_json
from serve.errors import MAX_PROBLEMS, ApiError
from serve.jobs import JobStore
from tests.serve.asking import data_url, error, post

PUNYCODE = b"a-" + b"b9z" * 60_000
"""Decoded as punycode it takes minutes."""


def form(client: TestClient, png: bytes, charset: str, prompt: bytes = b"x") -> Response:
    """A form as `post` sends it, with parameters of its content type."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (b"prompt", b"", prompt) + part % (b"input_reference", b'; filename="f"', png) + b"--b--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary=b{charset}"}
    return client.post("/v1/videos", content=body, headers=headers)


def sent(client: TestClient, body: bytes | str) -> Response:
    return client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    "charset", ["punycode", '"punycode"', "utf-8; charset=punycode", "undefined", "idna", "utf-16"]
)
@pytest.mark.parametrize("prompt", [PUNYCODE, b"truncated-\xff"])
def test_a_form_in_another_encoding_is_refused_unread(
    client: TestClient, png: bytes, charset: str, prompt: bytes
) -> None:
    began = time.monotonic()
    error(form(client, png, f"; charset={charset}", prompt), 415, "unsupported_media_type")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"', "; charset=utf8"])
def test_a_form_in_utf8_is_read(client: TestClient, store: JobStore, png: bytes, charset: str) -> None:
    shown = form(client, png, charset, "Zürich".encode())
    assert shown.status_code == 200, shown.text
    assert shown.json()["prompt"] == "Zürich"


@pytest.mark.parametrize("charset", ["; charset*=utf-8''punycode", "; charset*0=puny; charset*1=code"])
def test_a_charset_in_parts_decodes_nothing(client: TestClient, png: bytes, charset: str) -> None:
    began = time.monotonic()
    assert form(client, png, charset, b"x-" + b"b9z" * 3000).status_code in (200, 415)
    assert time.monotonic() - began < 5


def test_fields_beside_the_image_are_bounded(client: TestClient, png: bytes) -> None:
    for field in ("model", "lora", "size", "n"):
        told = error(post(client, png, **{"prompt": "x", field: "9" * (FORM_BYTES + 1)}), 413, "too_large")
        assert str(FORM_BYTES)[:3] in told["message"]
    for body in (
        {"prompt": "x", "model": "m" * FORM_BYTES},
        {"prompt": "x", "input_reference": {"image_url": "data:,"}, "n": [[]] * 100_000},
        {"prompt": "x", **{f"n{n}": n for n in range(20_000)}},
    ):
        error(sent(client, json.dumps(body)), 413, "too_large")
    told = error(post(client, png, prompt="x", model="m" * 100_000), 400, "invalid_value", "model")
    assert len(told["message"]) < 200


def test_an_object_of_many_fields_is_refused_wherever_it_stands(client: TestClient) -> None:
    many = {f"n{n}": n for n in range(MAX_FIELDS + 1)}
    for body in ({"prompt": "x", **many}, {"prompt": "x", "input_reference": many}, {"prompt": [many]}):
        assert str(MAX_FIELDS) in error(sent(client, json.dumps(body)), 400, "invalid_value")["message"]


def test_an_error_names_a_few_fields_and_their_names_in_short(client: TestClient, png: bytes) -> None:
    body = {"prompt": "x", **{f"{n}" + "y" * 3000: n for n in range(30)}}
    told = error(sent(client, json.dumps(body)), 400, "invalid_value", "0" + "y" * 60 + "...")
    assert told["message"].count("unknown field") == MAX_PROBLEMS
    assert told["message"].endswith("; and 20 more")
    assert len(told["message"]) < 2000
    long = "y" * 1000
    told = error(post(client, png, **{"prompt": "x", long: 1}), 400, "invalid_value", "y" * 61 + "...")
    twice = [(long, (None, "1")), (long, (None, "2")), ("input_reference", ("f", png))]
    assert len(error(client.post("/v1/videos", files=twice), 400, "invalid_value", "y" * 61 + "...")["message"]) < 200


def test_a_large_image_in_json_is_taken_however_its_slashes_are_written(client: TestClient, store: JobStore) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(noise).save(image, "PNG")
    assert 195_000 < len(image.getvalue()) < 200_000
    body = json.dumps({"input_reference": {"image_url": data_url(image.getvalue())}, "prompt": "x"})
    assert len(body) > FORM_BYTES
    for text in (body, body.replace("/", "\\/")):
        assert sent(client, text).status_code == 200
    assert store.backlog().queued == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": [' + b"[]," * 3_000_000 + b"[]]}",
        b"{" + b",".join(b'"%d":0' % n for n in range(500_000)) + b"}",
        b'{"image_url": "x", "a": [' + b"[]," * 3_000_000 + b"[]]}",
        b'{"image_url"' + b" " * 9_000_000 + b"}",
        b'"\\"image_url\\": \\"' + b"[]," * 3_000_000,
        b'{"image_url": "\\"' + b"[]," * 3_000_000 + b'"}',
    ],
    ids=["containers", "keys", "beside a short image", "spaces", "escaped", "a quote within"],
)
def test_megabytes_beside_the_image_are_not_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.bodies.json.loads", lambda *a, **k: pytest.fail("it was parsed"))
    began = time.monotonic()
    with pytest.raises(ApiError) as refusal:
        _parse_json(body)
    assert refusal.value.status == 413
    assert time.monotonic() - began < 2


def test_what_is_taken_for_the_image_is_one_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quotes are set, what does not count is no more than one string: else it is not JSON at all."""
    hidden: list[Any] = [b'{"a": "\\"image_url": "%s"}', b'{"a": "x"image_url": "%s"}', b'{"a": 1 "image_url": "%s"}']
    for body in hidden:
        with pytest.raises(ApiError) as refusal:
            _parse_json(body % (b"[]," * 500_000))
        assert refusal.value.code == "invalid_json"
