"""Bodies while they arrive: bounded in bytes, seconds and number, and what is read of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.types import Message

from cinesynth.storage import sha256_json
from serve.config import ImageLimits, ServeConfig, UploadLimits
from serve.errors import NO_RETRY, ApiError, clipped
from serve.media import ImageRefused, data_url_bytes
from serve.schema import CreateVideo, Prompted, parse_create, parse_remix

FORM_BYTES = 256_000
"""Most bytes of a request's body beside the image: the other fields and the multipart framing."""
MAX_FIELDS = 64
"""Of a form, and of each object in JSON; requests have a fourth as many."""

_REFERENCE = {f"input_reference[{name}]": name for name in ("image_url", "file_id")}
_IMAGE_FIELDS = "input_reference", "input_reference[image_url]"
_IMAGE_URL = re.compile(rb'"image_url"\s*+:\s*+"([^"]*+)')
"""A string up to its first quote, which is its end in a data URL."""


@dataclass(frozen=True)
class CreateBody:
    """What POST /v1/videos was sent: validated, and a hash that two equal requests share."""

    request: CreateVideo
    image: bytes
    sha256: str


@dataclass(frozen=True)
class RemixBody:
    """What POST /v1/videos/{id}/remix was sent, in the same way."""

    request: Prompted
    sha256: str


async def read_create(request: Request, config: ServeConfig) -> CreateBody:
    """The validated fields, and the first frame's bytes as they were sent.

    Raises ApiError: 413 as soon as too many bytes have arrived, 415 for another content type, 400 for bad fields.
    """
    kind = _content_type(request)
    # A data URL is a third longer than the image. It may also come as a field of a form.
    capped = _capped(request, config.image.max_bytes * 4 // 3 + FORM_BYTES)
    if kind == "multipart/form-data":
        fields, image = await _read_form(capped, config.image)
    elif kind == "application/json":
        fields, image = await _read_json(capped), None
    else:
        message = f"content type {clipped(kind)!r}: use multipart/form-data or application/json"
        raise ApiError(415, "unsupported_media_type", message)
    video = parse_create(fields)
    if image is None:
        if video.input_reference is None:
            how = "as a file" if kind == "multipart/form-data" else '{"image_url": "data:image/png;base64,..."}'
            message = f"input_reference: the first frame is required, {how}"
            raise ApiError(400, "missing", message, "input_reference")
        try:
            image = data_url_bytes(video.input_reference.image_url, config.image)
        except ImageRefused as e:
            raise image_error(e) from e
    raw = {name: value for name, value in fields.items() if name != "input_reference"}
    return CreateBody(video, image, sha256_json(["create", raw, hashlib.sha256(image).hexdigest()]))


async def read_remix(request: Request, video_id: str) -> RemixBody:
    """The validated fields of a remix of a video. Raises ApiError as `read_create` does."""
    fields = await read_object(request)
    return RemixBody(parse_remix(fields), sha256_json(["remix", video_id, fields]))


async def read_object(request: Request) -> dict[str, Any]:
    """The fields of a body that is a small JSON object. Raises ApiError (400, 413, 415)."""
    kind = _content_type(request)
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", f"content type {clipped(kind)!r}: use application/json")
    return await _read_json(_capped(request, FORM_BYTES))


def image_error(error: ImageRefused) -> ApiError:
    """The refusal of a first frame."""
    status, code = (413, "too_large") if error.too_large else (400, "invalid_image")
    return ApiError(status, code, f"input_reference: {error}", "input_reference")


class Uploads:
    """Slots of bodies that are arriving, each for some seconds only.

    Args:
        limits: how many, and for how long.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self._of: Counter[str] = Counter()

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[AbstractAsyncContextManager[Any]]:
        """A slot for a body of this owner; gives what bounds its arrival. Raises ApiError (408, 429, 503)."""
        limits = self.limits
        if self._of[owner] >= limits.per_key:
            message = f"{limits.per_key} requests of this key are arriving; wait for one of them"
            raise ApiError(429, "too_many_uploads", message, headers={"Retry-After": "1"})
        if self._of.total() >= limits.at_once:
            message = f"{limits.at_once} requests are arriving; try again"
            raise ApiError(503, "too_many_uploads", message, headers={"Retry-After": "5"})
        self._of[owner] += 1
        try:
            yield asyncio.timeout(limits.seconds)
        except TimeoutError as e:
            message = f"the body did not arrive within {limits.seconds:g} s"
            headers = {**NO_RETRY, "Connection": "close"}
            raise ApiError(408, "body_timeout", message, headers=headers) from e
        finally:
            self._of[owner] -= 1
            self._of += Counter()  # drops those at zero


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_form(request: Request, limits: ImageLimits) -> tuple[dict[str, Any], bytes | None]:
    """The fields, and the image where it is a file."""
    _check_charset(request)
    longest = limits.max_bytes * 4 // 3 + FORM_BYTES
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=longest) as form:
        fields: dict[str, Any] = {}
        beside = 0
        for name, value in form.multi_items():
            told = clipped(name)
            if name in fields:
                raise ApiError(400, "invalid_value", f"{told}: is given twice", told)
            if isinstance(value, UploadFile) and name != "input_reference":
                raise ApiError(400, "invalid_value", f"{told}: is not a file field", told)
            beside += len(value) if isinstance(value, str) and name not in _IMAGE_FIELDS else 0
            fields[name] = value
        if beside > FORM_BYTES:
            raise _too_much_beside()
        upload = fields.pop("input_reference", None)
        inner = {name: fields.pop(name) for name in _REFERENCE if name in fields}
        if inner and upload is not None:
            raise ApiError(400, "invalid_value", "input_reference: is given twice", "input_reference")
        if inner:  # as OpenAI's client sends {"image_url": ...}
            fields["input_reference"] = {_REFERENCE[name]: value for name, value in inner.items()}
        image = await upload.read(limits.max_bytes + 1) if isinstance(upload, UploadFile) else None
        return fields, image


def _check_charset(request: Request) -> None:
    """Raise ApiError 415 for a form in another encoding than UTF-8.

    Starlette decodes with any codec that a client names. Some of them take minutes for a few hundred kilobytes.
    """
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        message = f"charset {clipped(charset.decode('latin-1'))!r}: send the form in UTF-8"
        raise ApiError(415, "unsupported_media_type", message)


async def _read_json(request: Request) -> dict[str, Any]:
    body = await request.body()
    if len(body) <= FORM_BYTES:
        return _parse_json(body)
    return await asyncio.to_thread(_parse_json, body)


def _parse_json(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Nothing of it but the image may be large: small values take long, and memory."""
    if len(body) > FORM_BYTES:
        image = _IMAGE_URL.search(body)
        if len(body) - (len(image[1]) if image else 0) > FORM_BYTES:
            raise _too_much_beside()
    try:
        fields = json.loads(body, object_pairs_hook=_json_object)
    except (ValueError, RecursionError) as e:
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {e}") from e
    if not isinstance(fields, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return fields


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_FIELDS:
        raise ApiError(400, "invalid_value", f"an object has {len(pairs)} fields; at most {MAX_FIELDS}")
    return dict(pairs)


def _too_much_beside() -> ApiError:
    return ApiError(413, "too_large", f"the fields beside the image take more than {FORM_BYTES:,} bytes")


def _capped(request: Request, limit: int) -> Request:
    """The same request, whose body raises ApiError 413 when more than `limit` bytes of it are read."""
    error = ApiError(413, "too_large", f"the request is larger than {limit:,} bytes", "input_reference")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and declared.isascii() and len(declared) < 20 and int(declared) > limit:
        raise error
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise error
        return message

    return Request(request.scope, receive)
