"""Each request's id: the client's own `X-Request-Id`, or one that is made. Answers and log lines carry it."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

REQUEST_ID = "X-Request-Id"

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """The id of the request that is being answered."""
    return _current.get()


@contextmanager
def request_id_of(scope: Scope) -> Iterator[str]:
    """The id of a request, current until it is answered: the client's where it may stand in a log, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID, "")
    standing = _current.set(given if _SANE.fullmatch(given) else uuid.uuid4().hex)
    try:
        yield _current.get() or ""
    finally:
        _current.reset(standing)


class RequestLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines end with the id of the request that is being answered."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return (f"{msg} [request {_current.get()}]" if _current.get() else msg), kwargs


def request_log(name: str) -> RequestLog:
    """The logger of a module that answers requests."""
    return RequestLog(logging.getLogger(name), {})
