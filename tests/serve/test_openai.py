"""The unmodified OpenAI client over a real socket."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from cinesynth.data.video import read_video, write_video
from serve.auth import create_key
from serve.config import ServeConfig
from serve.jobs import JobStore
from tests.serve.asking import data_url, served

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")


@pytest.fixture
def url(client: TestClient) -> Iterator[str]:
    with served(client.app) as url:
        yield f"{url}/v1"


@pytest.fixture
def asked(url: str, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=key, base_url=url, timeout=60) as asked:
        yield asked


@contextmanager
def engine(config: ServeConfig, store: JobStore) -> Iterator[None]:
    """Does an engine's work in a thread, with some steps of progress."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            lease = store.lease_next("engine")
            if lease is None:
                continue
            store.heartbeat(lease.job.id, lease.token, 50)
            stop.wait(0.3)
            name = f"{lease.job.id}.{lease.token}.mp4"
            write_video(config.results() / name, np.full((9, 64, 96, 3), 99, np.uint8))
            store.complete(lease.job.id, lease.token, name, "00")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_video_from_create_to_delete(
    asked: openai.OpenAI, config: ServeConfig, store: JobStore, png: bytes, tmp_path: Path
) -> None:
    first = tmp_path / "first.png"
    first.write_bytes(png)
    made = asked.videos.create(
        prompt="a car",
        model="drawing",
        seconds="0.5",  # type: ignore[arg-type]
        size="96x64",  # type: ignore[arg-type]
        input_reference=first,
        extra_body={"seed": 3, "guidance_scale": 2},
    )
    assert (made.object, made.status, made.seconds, made.size) == ("video", "queued", "0.5", "96x64")
    job = store.get(made.id)
    assert job is not None
    assert job.request["sampler"]["seed"] == 3
    assert asked.videos.retrieve(made.id) == made
    with engine(config, store):
        done = asked.videos.poll(made.id, poll_interval_ms=100)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    content = asked.videos.download_content(made.id)
    content.write_to_file(tmp_path / "out.mp4")
    frames, _ = read_video(tmp_path / "out.mp4")
    assert frames.shape == (9, 64, 96, 3)
    assert asked.videos.download_content(made.id, variant="thumbnail").read()[:4] == b"RIFF"
    remixed = asked.videos.remix(made.id, prompt="at night")
    assert (remixed.prompt, remixed.remixed_from_video_id) == ("at night", made.id)
    listed = asked.videos.list(limit=1)
    assert [v.id for v in listed.data] == [remixed.id]
    assert [v.id for v in asked.videos.list(limit=1)] == [remixed.id, made.id], "the client turns the pages by itself"
    gone = asked.videos.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        asked.videos.retrieve(made.id)


def test_create_and_poll_heeds_when_to_look_again(
    asked: openai.OpenAI, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    store.assumed_job_s = 1.0
    started = time.monotonic()
    with engine(config, store):
        done = asked.videos.create_and_poll(prompt="x", input_reference=("f.png", io.BytesIO(png)))
    assert done.status == "completed"
    assert time.monotonic() - started < 20


def test_a_data_url_goes_through_the_clients_form(asked: openai.OpenAI, store: JobStore, png: bytes) -> None:
    # In `input_reference` itself the client takes files only, whatever its types say.
    made = asked.videos.create(prompt="x", extra_body={"input_reference": {"image_url": data_url(png)}})
    assert store.get(made.id) is not None
    with pytest.raises(openai.BadRequestError, match="files are not kept"):
        asked.videos.create(prompt="x", extra_body={"input_reference": {"file_id": "file-1"}})


def test_the_model_is_listed(asked: openai.OpenAI) -> None:
    (model,) = asked.models.list().data
    assert asked.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        asked.models.retrieve("sora-2")


def test_refusals_are_the_clients_own_errors(
    asked: openai.OpenAI, url: str, config: ServeConfig, store: JobStore, png: bytes
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        asked.videos.create(prompt="x", input_reference=png, seconds="99")  # type: ignore[arg-type]
    assert (bad.value.code, bad.value.param) == ("shape_not_allowed", "seconds")
    assert bad.value.request_id
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="cs-wrong", base_url=url).videos.list()
    reviewer = create_key(config.keys_path(), "reviewer", ["review"])
    with pytest.raises(openai.PermissionDeniedError):
        openai.OpenAI(api_key=reviewer, base_url=url).videos.list()
    made = asked.videos.create(prompt="x", input_reference=png)
    started = time.monotonic()
    with pytest.raises(openai.ConflictError, match="ask again when completed"):
        asked.videos.download_content(made.id)
    assert time.monotonic() - started < 0.5, "it did not ask again by itself"
    with pytest.raises(openai.NotFoundError, match="remix"):
        asked.videos.edit(prompt="x", video=b"MP4")
    with pytest.raises(openai.NotFoundError, match="new one"):
        asked.videos.extend(prompt="x", seconds="4", video=b"MP4")
    for _ in range(2):
        asked.videos.create(prompt="x", input_reference=png)
    with pytest.raises(openai.RateLimitError) as full:
        asked.with_options(max_retries=0).videos.create(prompt="x", input_reference=png)
    assert full.value.code == "queue_full"


def test_an_idempotency_key_goes_as_a_header(asked: openai.OpenAI, store: JobStore, png: bytes) -> None:
    headers = {"Idempotency-Key": "a1"}
    ids = {asked.videos.create(prompt="x", input_reference=png, extra_headers=headers).id for _ in range(2)}
    assert len(ids) == 1
    with pytest.raises(openai.ConflictError) as reused:
        asked.videos.create(prompt="y", input_reference=png, extra_headers=headers)
    assert reused.value.code == "idempotency_key_reused"
