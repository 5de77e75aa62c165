"""Errors over HTTP, in OpenAI's shape: {"error": {"message", "type", "code", "param"}}."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


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

    def response(self) -> JSONResponse:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "code": self.code, "param": self.param, **self.extra}
        return JSONResponse({"error": error}, self.status, self.headers)


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(BaseModel):
    """What every refusal answers with."""

    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals of a route, for its description."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def invalid(error: ValidationError) -> ApiError:
    """An ApiError 400 that names every field at fault."""
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        field = ".".join(str(part) for part in item["loc"]) or "body"
        unknown = item["type"] == "extra_forbidden"
        problems.append((field, "unknown field" if unknown else item["msg"].removeprefix("Value error, ")))
    message = "; ".join(f"{field}: {text}" for field, text in problems)
    return ApiError(400, "invalid_value", message, param=problems[0][0])


def install(api: FastAPI) -> None:
    """Give every error response of `api` the shape."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, code, str(error.detail), headers=headers).response()

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return ApiError(500, "internal", "the server failed; the reason is in its log").response()

    async def on_bad_parameter(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        told = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return ApiError(400, "invalid_value", told, param=str(error.errors()[0]["loc"][-1])).response()

    api.add_exception_handler(ApiError, on_api_error)
    api.add_exception_handler(RequestValidationError, on_bad_parameter)
    api.add_exception_handler(HTTPException, on_http_error)
    api.add_exception_handler(Exception, on_bug)
