"""The engine against a real job table, called as through the Dispatcher's handle; no Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cinesynth.config import SamplerSettings
from cinesynth.data.video import read_metadata, read_video
from cinesynth.errors import AdapterError, GenerationError, MediaError, ModelError, StorageError
from cinesynth.registry import Published
from cinesynth.storage import sha256_file
from serve.config import ServeConfig
from serve.engine import Engine, EngineBroken, explain
from serve.jobs import Job, JobStore, NewJob, QueueFull
from serve.schema import JobRequest
from tests.serve.drawing import Drawing


class Remote:
    """A method of a deployment handle: `await method.remote(...)`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    async def remote(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.call, *args)


class Handle:
    """The call surface of the Dispatcher's handle, over a job table of this process."""

    def __init__(self, store: JobStore) -> None:
        self.lease_next = Remote(store.lease_next)
        self.run = Remote(lambda operation, *args: getattr(store, operation)(*args))


def add(config: ServeConfig, store: JobStore, job_id: str = "video_a", adapter: str | None = None) -> None:
    request = JobRequest(
        model="drawing",
        prompt="a bar moves",
        num_frames=9,
        height=64,
        width=96,
        sampler=SamplerSettings(steps=4, seed=7),
        adapter=adapter,
    )
    Image.new("RGB", (120, 80), (200, 0, 0)).save(config.inputs() / f"{job_id}.png")
    new = NewJob(job_id, "alice", request.model_dump(mode="json"), adapter, f"{job_id}.png", request.work)
    assert not isinstance(store.create(new), QueueFull)


def get(store: JobStore, job_id: str = "video_a") -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


def engine_of(config: ServeConfig, store: JobStore, drawing: Drawing | None = None) -> Engine:
    made = drawing or Drawing()
    return Engine(config, lambda model, device: made, Handle(store))


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Engines that ended their process."""
    ended: list[Engine] = []
    monkeypatch.setattr(Engine, "_leave", lambda engine: ended.append(engine))
    return ended


def with_engine(config: ServeConfig, **values: Any) -> ServeConfig:
    return config.model_copy(update={"engine": config.engine.model_copy(update=values)})


def test_a_job_becomes_a_playable_video_with_its_hash_and_provenance(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    engine = engine_of(config, store)
    assert asyncio.run(engine.run_next("call")) == "completed"
    job = get(store)
    path = config.results() / (job.result or "")
    assert (job.status, job.progress, job.sha256) == ("completed", 100, sha256_file(path))
    frames, fps = read_video(path)
    assert (frames.shape, fps) == ((9, 64, 96, 3), 16)
    metadata = read_metadata(path)
    assert (metadata["job"], metadata["seed"], metadata["request"]["prompt"]) == ("video_a", 7, "a bar moves")
    assert [p.name for p in config.results().iterdir()] == [job.result], "no temporary file stays"
    assert asyncio.run(engine.run_next("call")) == "empty"


def test_progress_is_that_of_the_steps(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    drawing = Drawing()
    seen: list[int] = []

    def wait_until_reported(step: int) -> None:
        wanted = 100 * step // 4
        deadline = threading.Event()
        while get(store).progress != wanted and not deadline.wait(0.01):
            pass
        seen.append(get(store).progress)

    drawing.before_step = wait_until_reported
    assert asyncio.run(asyncio.wait_for(engine_of(config, store, drawing).run_next("call"), 20)) == "completed"
    assert seen == [0, 25, 50, 75]


def test_an_engine_that_lost_its_lease_stops_between_steps_and_leaves_nothing(
    config: ServeConfig, store: JobStore
) -> None:
    add(config, store)
    drawing, steps = Drawing(), []

    def lose(step: int) -> None:
        steps.append(step)
        if step == 1:
            store.release("call", "declared dead")
            assert store.lease_next("other") is not None
            engine_noticed.wait(10)

    engine_noticed = threading.Event()
    drawing.before_step = lose
    engine = engine_of(config, store, drawing)
    renew = engine._renew

    async def watched(attempt: Any) -> bool:
        kept = await renew(attempt)
        if not kept:
            attempt.lost.set()
            engine_noticed.set()
        return kept

    engine._renew = watched  # type: ignore[method-assign]
    assert asyncio.run(engine.run_next("call")) == "lost"
    assert steps == [0, 1], "cancelled before the next step"
    assert list(config.results().iterdir()) == []
    job = get(store)
    assert (job.status, job.attempts) == ("in_progress", 2), "the other engine's lease is untouched"
    engine.check_health()


def test_a_result_that_comes_after_the_lease_was_lost_is_thrown_away(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    drawing = Drawing()
    slow = config.model_copy(update={"heartbeat_s": 60.0})  # no heartbeat tells it in time

    def lose(step: int) -> None:
        if step == 3:
            store.release("call", "declared dead")

    drawing.before_step = lose
    assert asyncio.run(engine_of(slow, store, drawing).run_next("call")) == "lost"
    assert list(config.results().iterdir()) == []
    assert get(store).status == "queued"


def test_an_engine_without_progress_gives_the_job_back_and_asks_to_be_replaced(
    config: ServeConfig, store: JobStore, left: list[Engine]
) -> None:
    add(config, store)
    drawing, release = Drawing(), threading.Event()
    drawing.before_step = lambda step: release.wait(20) and None
    engine = engine_of(with_engine(config, step_timeout_s=0.3), store, drawing)
    try:
        assert asyncio.run(engine.run_next("call")) == "lost"
        assert get(store).status == "queued"
        assert left == [engine], "its process holds the GPU"
        with pytest.raises(EngineBroken, match="no progress"):
            engine.check_health()
        with pytest.raises(EngineBroken):
            asyncio.run(engine.run_next("call"))
    finally:
        release.set()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), "oom", "fewer frames"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "oom", "fewer frames"),
        (AdapterError("adapter /srv/secret/x: does not fit"), "invalid", "adapter x: does not fit"),
        (GenerationError("the latents are not finite"), "invalid", "not finite"),
        (MediaError("first.png: is cut"), "invalid", "is cut"),
    ],
)
def test_failures_are_final_and_typed_and_tell_no_server_paths(
    config: ServeConfig, store: JobStore, left: list[Engine], error: Exception, code: str, message: str
) -> None:
    add(config, store)
    drawing = Drawing()

    def fail(step: int) -> None:
        raise error

    drawing.before_step = fail
    engine = engine_of(config, store, drawing)
    assert asyncio.run(engine.run_next("call")) == "failed"
    job = get(store)
    assert (job.status, job.error_code) == ("failed", code)
    assert message in (job.error_message or "")
    assert "secret" not in (job.error_message or "")
    engine.check_health()
    assert left == []


@pytest.mark.parametrize("error", [KeyError("secret"), StorageError("s3: the server hung up"), RuntimeError("CUDA")])
def test_what_may_be_the_engines_fault_costs_the_engine_and_an_attempt(
    config: ServeConfig, store: JobStore, left: list[Engine], error: Exception
) -> None:
    add(config, store)
    for attempt in (1, 2, 3):
        drawing = Drawing()

        def fail(step: int) -> None:
            raise error

        drawing.before_step = fail
        engine = engine_of(config, store, drawing)
        assert asyncio.run(engine.run_next("call")) == "lost"
        assert left[-1] is engine
        with pytest.raises(EngineBroken):
            engine.check_health()
        job = get(store)
        assert (job.status, job.attempts) == ("queued" if attempt < 3 else "failed", attempt)
    assert job.error_code == "internal"
    assert type(error).__name__ in (job.error_message or "")
    assert "secret" not in (job.error_message or "")


def test_a_first_frame_that_is_gone_is_told(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    (config.inputs() / "video_a.png").unlink()
    assert asyncio.run(engine_of(config, store).run_next("call")) == "failed"
    job = get(store)
    assert (job.error_code, "first frame is no longer there" in (job.error_message or "")) == ("invalid", True)


def test_a_model_that_does_not_load_gives_the_job_back_and_ends_the_replica(
    config: ServeConfig, store: JobStore, left: list[Engine]
) -> None:
    config = config.model_copy(update={"max_attempts": 1})
    store.max_attempts = 1
    add(config, store)

    def broken(model: str, device: str) -> Drawing:
        raise ModelError("model 'x': /srv/models/x/vae is damaged")

    engine = Engine(config, broken, Handle(store))
    assert asyncio.run(engine.run_next("call")) == "lost"
    job = get(store)
    assert (job.error_code, job.error_message) == (
        "internal",
        "the model cannot be loaded: model 'x': vae is damaged; given up after 1 attempts",
    )
    assert left == [engine]
    with pytest.raises(EngineBroken):
        engine.check_health()


def test_the_jobs_adapter_is_fetched_checked_and_kept_loaded(
    config: ServeConfig,
    store: JobStore,
    publish: Callable[..., Published],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path / "cache"))
    published = publish("film-look")
    drawing = Drawing()
    loads: list[list[tuple[Path, float]]] = []
    drawing.load_adapters = loads.append  # type: ignore[method-assign]
    engine = engine_of(config, store, drawing)
    for name, adapter in [("video_a", published.ref), ("video_b", published.ref), ("video_c", None)]:
        add(config, store, name, adapter)
        assert asyncio.run(engine.run_next("call")) == "completed"
    folder = tmp_path / "cache" / "adapters" / published.sha256
    assert loads == [[(folder, 1.0)], []], "loaded once for two jobs, then taken off"
    assert (folder / "weights.bin").read_bytes() == b"film-look"


def test_folders_are_stripped_from_messages() -> None:
    assert explain(AdapterError("'/srv/a b/x.json' and https://x/y"))[0] == "invalid"
    assert explain(AdapterError("/srv/store/cards/card.json is bad"))[1] == "card.json is bad"
