"""Requests that Schemathesis makes up from the API's description: none is answered with what is not described."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.config import ServeConfig
from serve.jobs import JobStore
from tests.serve.asking import data_url, finish, post

CASES = 2000
PER_OPERATION = 140
"""Of good and of bad requests each; those without parameters have fewer."""
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)


def with_a_real_frame(case: Case, png: bytes) -> None:
    """Random bytes are no picture: with one, the request is judged by its other fields."""
    if isinstance(case.body, dict) and case.media_type == "multipart/form-data":
        case.body["input_reference"] = png
    elif isinstance(case.body, dict):
        case.body["input_reference"] = {"image_url": data_url(png)}


@pytest.mark.slow
@pytest.mark.beside
def test_no_request_is_answered_with_what_is_not_described(
    client: TestClient, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    finished = post(client, png, prompt="x").json()["id"]
    finish(config, store)
    store.queue_cap = 10 * CASES
    operations = [result.ok() for result in openapi.from_asgi("/openapi.json", client.app).get_all_operations()]
    seen: Counter[tuple[str, int]] = Counter()

    def queued() -> str:
        return post(client, png, prompt="x").json()["id"]

    @settings(
        max_examples=PER_OPERATION,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def send(operation: Any, mode: GenerationMode, data: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        label = operation.label
        if "video_id" in (case.path_parameters or {}) and data.draw(st.booleans()):
            # The events of a video that is queued would not end.
            case.path_parameters["video_id"] = queued() if "DELETE" in label else finished
        if label == "POST /v1/videos" and data.draw(st.booleans()):
            with_a_real_frame(case, png)
        if data.draw(st.integers(0, 9)) != 9:  # else with the key that was made up, or none
            case.headers["Authorization"] = client.headers["Authorization"]
        response = case.call()
        seen[label, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    for operation in operations:
        for mode in GenerationMode:
            with suppress(Unsatisfiable):  # nothing can be wrong about a request without parameters
                send(operation, mode)
    assert sum(seen.values()) >= CASES, seen
    assert {200, 400, 401, 404, 409} <= {status for _, status in seen}, "they reach what lies behind the checks"
