"""The API's description (OpenAPI): the bodies, contents and headers that the routes' signatures do not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve.content import MEDIA_TYPES
from serve.events import VideoState
from serve.request_id import REQUEST_ID
from serve.reviews import ReviewAnswer
from serve.schema import CreateVideo, Prompted

_HEADERS = {
    REQUEST_ID: ("string", "the request's id: the client's own where it sent a plain one"),
    "Retry-After": ("integer", "seconds to wait before the request is sent again"),
    "WWW-Authenticate": ("string", "Bearer"),
    "x-should-retry": ("string", "false: OpenAI's client does not ask again by itself"),
    "openai-poll-after-ms": ("integer", "while the video has not ended: milliseconds to wait before the next look"),
    "Accept-Ranges": ("string", "bytes"),
    "Content-Range": ("string", "which bytes of how many"),
    "Content-Disposition": ("string", "a file name for the download"),
}
_VIDEO = {"$ref": "#/components/schemas/Video"}
_OF_STATUS = {
    "401": ["WWW-Authenticate"],
    "408": ["x-should-retry"],
    "409": ["x-should-retry"],
    "416": ["Content-Range"],
    "429": ["Retry-After"],
    "503": ["Retry-After", "x-should-retry"],
    "507": ["x-should-retry"],
}


def create_body() -> dict[str, Any]:
    """The two bodies of POST /v1/videos."""
    described = CreateVideo.model_json_schema()
    reference = described.pop("$defs")["InputReference"]
    described["required"] = ["prompt", "input_reference"]
    described["properties"]["input_reference"] = reference
    file = {"type": "string", "format": "binary", "description": "the first frame: JPEG, PNG or WebP"}
    form = {**described, "properties": {**described["properties"], "input_reference": file}}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": described}}
    return {"required": True, "content": content}


def remix_body() -> dict[str, Any]:
    """The body of POST /v1/videos/{id}/remix."""
    return {"required": True, "content": {"application/json": {"schema": Prompted.model_json_schema()}}}


def answer_body() -> dict[str, Any]:
    """The body of PUT /v1/review/answers/{item}."""
    return {"required": True, "content": {"application/json": {"schema": ReviewAnswer.model_json_schema()}}}


def clip_responses() -> dict[int | str, dict[str, Any]]:
    """A video of a review, whole or in part."""
    return _file_responses(MEDIA_TYPES["video"])


def content_responses() -> dict[int | str, dict[str, Any]]:
    """A file, whole or in part."""
    return _file_responses(*MEDIA_TYPES.values())


def _file_responses(*kinds: str) -> dict[int | str, dict[str, Any]]:
    file = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    headers = _headers("Accept-Ranges", "Content-Disposition")
    return {
        200: {"content": file, "description": "the whole file", "headers": headers},
        206: {"content": file, "description": "a range of bytes", "headers": {**headers, **_headers("Content-Range")}},
    }


def event_responses() -> dict[int | str, dict[str, Any]]:
    """A stream of events."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": VideoState.model_json_schema(),
    }
    names = {"type": "string", "enum": ["status", "completed", "failed", "deleted"]}
    event = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "event": names, "data": data},
        "required": ["id", "event", "data"],
    }
    stream = {"text/event-stream": {"schema": event}}
    told = "events of this form; the last one is called completed, failed or deleted"
    return {
        200: {"content": stream, "description": told},
        204: {"description": "the video has ended, and Last-Event-ID says that the client knows"},
    }


def described(describe: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """FastAPI's description with all headers, and without the 422 of its own, which is answered as 400 here."""

    def openapi() -> dict[str, Any]:
        document = describe()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                for status, response in operation["responses"].items():
                    names = [REQUEST_ID, *_OF_STATUS.get(status, [])]
                    if response.get("content", {}).get("application/json", {}).get("schema") == _VIDEO:
                        names.append("openai-poll-after-ms")
                    response["headers"] = {**response.get("headers", {}), **_headers(*names)}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    return openapi


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"schema": {"type": _HEADERS[name][0]}, "description": _HEADERS[name][1]} for name in names}
