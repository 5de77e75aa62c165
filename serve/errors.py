"""Errors over HTTP, in OpenAI's shape: {"error": {"message", "type", "code", "param"}}."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.records import DatabaseFull
from serve.request_id import REQUEST_ID, current_request_id, request_id_of, request_log

logger = request_log(__name__)

NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's client not to ask again by itself."""

MAX_PROBLEMS = 10
"""Of one request, that an error names."""
MAX_NAME = 64
"""Characters of a name of the client's that an error repeats."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal that the client can act on.

    Args:
        status: HTTP status.
        code: stable identifier of the reason.
        message: what, which value, what is allowed.
        param: the request field at fault.
        headers: response headers.
        extra: further keys of the `error` object.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers, self.extra = headers, extra or {}

    def response(self) -> Response:
        """The answer. That of a failure of the server names the request, whose lines are in the server's log."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "code": self.code, "param": self.param, **self.extra}
        if self.status >= 500:
            error["request_id"] = current_request_id()
        # Written in ASCII: a message may quote what no UTF-8 can hold.
        return Response(json.dumps({"error": error}), self.status, self.headers, "application/json")


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None
    request_id: str | None = None
    """Of failures of the server (5xx): what to look for in its log."""


class ErrorBody(BaseModel):
    """What every refusal answers with."""

    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals of a route, for its description."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def clipped(name: str) -> str:
    """A name that a client made up, no longer than it may be repeated."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def invalid(error: ValidationError) -> ApiError:
    """An ApiError 400 that names the fields at fault, the first `MAX_PROBLEMS` of them."""
    problems = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]:
        field = clipped(".".join(str(part) for part in item["loc"])) or "body"
        unknown = item["type"] == "extra_forbidden"
        problems.append((field, "unknown field" if unknown else item["msg"].removeprefix("Value error, ")))
    more = error.error_count() - len(problems)
    message = "; ".join(f"{field}: {text}" for field, text in problems) + (f"; and {more} more" if more else "")
    return ApiError(400, "invalid_value", message, param=problems[0][0])


class Outermost:
    """ASGI middleware around the application: what leaves here bears the request's id, and a bug is a 500.

    Args:
        app: what answers.
        echo_request_id: whether to send the id as a header.
    """

    def __init__(self, app: ASGIApp, echo_request_id: bool = True) -> None:
        self.app, self.echo_request_id = app, echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self.echo_request_id:
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with request_id_of(scope) as request_id:
            try:
                await self.app(scope, receive, named)
            except Exception:
                logger.exception("%s %s failed", scope["method"], scope["path"])
                if started:
                    raise
                bug = ApiError(500, "internal", "the server failed; the reason is in its log")
                await bug.response()(scope, receive, named)


def disk_full() -> ApiError:
    """Of files, or of the job table."""
    message = "the server's disk is full; its operator has to make room"
    return ApiError(507, "insufficient_storage", message, headers=NO_RETRY)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Tells a full disk as such."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full() from e


def install(api: FastAPI, echo_request_id: bool = True) -> None:
    """Give every response of `api` its id, and every error the shape."""

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if error.status >= 500:
            logger.warning("%s %s: %s", request.method, request.url.path, error)
        return error.response()

    async def on_full(_: Request, error: Exception) -> Response:
        logger.error("%s", error)
        return disk_full().response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, code, str(error.detail), headers=headers).response()

    async def on_bad_parameter(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        told = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return ApiError(400, "invalid_value", told, param=str(error.errors()[0]["loc"][-1])).response()

    api.add_exception_handler(ApiError, on_api_error)
    api.add_exception_handler(DatabaseFull, on_full)
    api.add_exception_handler(RequestValidationError, on_bad_parameter)
    api.add_exception_handler(HTTPException, on_http_error)
    api.add_middleware(Outermost, echo_request_id=echo_request_id)
