"""The engine against a real job table, called as through the Dispatcher's handle; no Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cinesynth.config import SamplerSettings
from cinesynth.data.video import read_metadata, read_video
from cinesynth.errors import AdapterError, GenerationError, MediaError, ModelError, RankLost
from cinesynth.generate.state import SamplerState
from cinesynth.registry import Published
from cinesynth.storage import sha256_file
from cinesynth.wan.card import DIFFUSERS_FILE
from serve.config import ServeConfig
from serve.engine import Engine, EngineBroken, explain
from serve.jobs import Job, JobStore, NewJob
from serve.schema import JobRequest, ServedAdapter
from tests.serve.drawing import Drawing, LocalGroup


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
        self.aside: list[str] = []
        self.step_aside = Remote(self.aside.append)


def add(
    config: ServeConfig, store: JobStore, job_id: str = "video_a", adapters: tuple[ServedAdapter, ...] = ()
) -> None:
    request = JobRequest(
        model="drawing",
        prompt="a bar moves",
        num_frames=9,
        height=64,
        width=96,
        sampler=SamplerSettings(steps=4, seed=7),
        adapters=adapters,
    )
    Image.new("RGB", (120, 80), (200, 0, 0)).save(config.inputs() / f"{job_id}.png")
    fields = request.model_dump(mode="json")
    new = NewJob(job_id, "alice", fields, request.adapters_key(), f"{job_id}.png", request.work)
    assert isinstance(store.create(new), Job)


def get(store: JobStore, job_id: str = "video_a") -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


class Groups:
    """Makes groups of one rank, whose generator is a drawing that a test has a hand in."""

    def __init__(self, drawing: Drawing | None = None) -> None:
        self.drawing = drawing or Drawing()
        self.made: list[LocalGroup] = []

    def __call__(self, config: ServeConfig) -> LocalGroup:
        self.made.append(LocalGroup(config, lambda *_: self.drawing))
        return self.made[-1]


def engine_of(config: ServeConfig, store: JobStore, groups: Groups | Drawing | None = None) -> Engine:
    made = groups if isinstance(groups, Groups) else Groups(groups)
    return Engine(config, made, Handle(store))


def run(engine: Engine, timeout_s: float = 30) -> str:
    return asyncio.run(asyncio.wait_for(engine.run_next("call"), timeout_s))


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
    assert run(engine) == "completed"
    job = get(store)
    path = config.results() / (job.result or "")
    assert (job.status, job.progress, job.sha256) == ("completed", 100, sha256_file(path))
    frames, fps = read_video(path)
    assert (frames.shape, fps) == ((9, 64, 96, 3), 16)
    metadata = read_metadata(path)
    assert (metadata["job"], metadata["seed"], metadata["request"]["prompt"]) == ("video_a", 7, "a bar moves")
    assert metadata["model"] == "drawing", "the served name, and no folder of the server"
    assert [p.name for p in config.results().iterdir()] == [job.result], "no temporary file stays"
    assert run(engine) == "empty"


def test_an_engine_makes_no_video_that_another_model_was_asked_for(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    assert run(engine_of(config.model_copy(update={"served_name": "another"}), store)) == "empty"
    assert get(store).status == "queued"
    assert run(engine_of(config, store)) == "completed"


@pytest.mark.parametrize("held", [True, False])
def test_an_engine_that_lost_its_lease_leaves_the_state_to_the_next_attempt(
    config: ServeConfig, store: JobStore, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    add(config, store)
    state = config.states() / "video_a.safetensors"
    state.write_bytes(b"of the next attempt")

    @wraps(JobStore.complete)
    def complete(self: JobStore, *args: Any) -> bool:
        return held

    monkeypatch.setattr(JobStore, "complete", complete)
    assert run(engine_of(config, store)) == ("completed" if held else "lost")
    assert state.exists() == (not held)
    assert not held or list(config.results().iterdir())


def test_a_video_is_called_completed_once_a_power_cut_takes_it_no_more(
    config: ServeConfig, store: JobStore, synced: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(config, store)
    complete = JobStore.complete

    @wraps(complete)
    def completing(self: JobStore, job_id: str, token: int, result: str, *args: Any) -> bool:
        synced.append(("complete", config.results() / result))
        return complete(self, job_id, token, result, *args)

    monkeypatch.setattr(JobStore, "complete", completing)
    assert run(engine_of(config, store)) == "completed"
    result = config.results() / (get(store).result or "")
    of_result = [(kind, path) for kind, path in synced if path.parent == result.parent or path == result.parent]
    assert [kind for kind, _ in of_result] == ["file", "replace", "folder", "complete"]
    assert of_result[1:] == [("replace", result), ("folder", result.parent), ("complete", result)]


def test_the_model_is_loaded_and_warm_before_a_request_is_taken(config: ServeConfig, store: JobStore) -> None:
    groups = Groups()
    engine = engine_of(with_engine(config, warm_up=True), store, groups)
    assert groups.drawing.began_at == [0], "a video was made"
    add(config, store)
    assert run(engine) == "completed"
    assert [p.name for p in config.results().iterdir()] == [get(store).result], "the first one was kept nowhere"


def test_a_model_that_does_not_load_is_tried_again_and_no_job_is_leased_meanwhile(
    config: ServeConfig, store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serve.engine.RETRY_S", (0.01, 0.02))
    add(config, store)
    tried: list[Job] = []

    def sometimes(config: ServeConfig) -> LocalGroup:
        tried.append(get(store))
        if len(tried) < 4:  # after three replicas that did not start Serve would start no more
            raise ModelError("model 'x': /srv/models/x/vae is damaged")
        return LocalGroup(config)

    engine = Engine(config, sometimes, Handle(store))
    assert {(job.status, job.attempts) for job in tried} == {("queued", 0)}
    assert "trying again" in caplog.text
    assert run(engine) == "completed"


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
    assert run(engine_of(config, store, drawing)) == "completed"
    assert seen == [0, 25, 50, 75]


def test_an_engine_that_lost_its_lease_stops_within_a_step_and_leaves_nothing(
    config: ServeConfig, store: JobStore
) -> None:
    add(config, store)
    drawing, steps = Drawing(), []
    groups = Groups(drawing)

    def lose(step: int) -> None:
        steps.append(step)
        if step == 1:
            store.release("call", "declared dead")
            assert store.lease_next("other", "") is not None
            assert groups.made[0].called_off.wait(10)

    drawing.before_step = lose
    engine = engine_of(config, store, groups)
    assert run(engine) == "lost"
    assert steps == [0, 1], "called off before the next step"
    assert list(config.results().iterdir()) == []
    job = get(store)
    assert (job.status, job.attempts) == ("in_progress", 1), "the other engine's lease is untouched"
    engine.check_health()


def test_a_heartbeat_that_is_never_answered_costs_no_video(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    config = config.model_copy(update={"lease_s": 0.6})
    drawing, waited = Drawing(), []
    enough = threading.Event()

    class Silent:
        """Answers to all but heartbeats."""

        async def remote(self, operation: str, *args: Any) -> Any:
            if operation != "heartbeat":
                return getattr(store, operation)(*args)
            asked = time.monotonic()
            try:
                await asyncio.Event().wait()
            finally:
                waited.append(time.monotonic() - asked)
                if len(waited) == 2:
                    enough.set()

    handle = Handle(store)
    handle.run = Silent()  # type: ignore[assignment]
    drawing.before_step = lambda step: None if step != 2 else enough.wait(20) and None
    assert run(Engine(config, Groups(drawing), handle)) == "completed"
    assert enough.is_set()
    assert min(waited) == pytest.approx(config.lease_s / 2, abs=0.2)


def test_a_deleted_job_stops_within_a_step(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    drawing, steps = Drawing(), []
    groups = Groups(drawing)

    def delete(step: int) -> None:
        steps.append(step)
        if step == 1:
            assert store.delete("video_a", "alice") is not None
            assert groups.made[0].called_off.wait(10)

    drawing.before_step = delete
    engine = engine_of(config, store, groups)
    assert run(engine) == "lost"
    assert steps == [0, 1]
    assert list(config.results().iterdir()) == []
    add(config, store, "video_b")
    drawing.before_step = lambda step: None
    assert run(engine) == "completed", "the same group makes the next video"
    assert len(groups.made) == 1


def test_a_result_that_comes_after_the_lease_was_lost_is_thrown_away(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    drawing = Drawing()
    slow = config.model_copy(update={"heartbeat_s": 60.0})  # no heartbeat tells it in time

    def lose(step: int) -> None:
        if step == 3:
            store.release("call", "declared dead")

    drawing.before_step = lose
    assert run(engine_of(slow, store, drawing)) == "lost"
    assert list(config.results().iterdir()) == []
    assert get(store).status == "queued"


def test_a_lost_group_is_made_anew_and_the_next_attempt_goes_on_where_it_was(
    config: ServeConfig, store: JobStore, left: list[Engine]
) -> None:
    config = with_engine(config, keep_every=2, step_timeout_s=0.5)
    add(config, store, "video_whole")
    assert run(engine_of(config, store)) == "completed"
    add(config, store)
    drawing, release = Drawing(), threading.Event()
    drawing.before_step = lambda step: step == 3 and release.wait(20) and None
    groups = Groups(drawing)
    engine = engine_of(config, store, groups)
    try:
        assert run(engine) == "lost"
        job = get(store)
        assert (job.status, job.attempts) == ("queued", 1)
        assert len(groups.made) == 2
        engine.check_health()
        assert left == [], "only the group was made anew"
        drawing.before_step = lambda step: None
        assert run(engine) == "completed"
        assert drawing.began_at == [0, 2]
        assert list(config.states().iterdir()) == [], "a state is kept no longer than it is needed"
    finally:
        release.set()
    results = [config.results() / (get(store, f"video_{name}").result or "") for name in ("a", "whole")]
    after, without = (read_metadata(path)["last"] for path in results)
    assert after == without, "as without the loss"


def test_a_group_that_died_between_two_videos_costs_nobody_an_attempt(config: ServeConfig, store: JobStore) -> None:
    groups = Groups()
    engine = engine_of(config, store, groups)
    groups.made[0].usable = False
    add(config, store)
    assert run(engine) == "completed"
    assert (get(store).attempts, len(groups.made)) == (0, 2)


def test_without_another_group_the_replica_ends(config: ServeConfig, store: JobStore, left: list[Engine]) -> None:
    add(config, store)
    drawing = Drawing()

    def break_all(step: int) -> None:
        engine._groups = unable
        raise KeyError("secret")

    def unable(config: ServeConfig) -> LocalGroup:
        raise RankLost("no GPU answers")

    drawing.before_step = break_all
    engine = engine_of(config, store, drawing)
    assert run(engine) == "lost"
    assert left == [engine]
    with pytest.raises(EngineBroken, match="no other one can be made"):
        engine.check_health()
    with pytest.raises(EngineBroken):
        run(engine)
    assert get(store).status == "queued"


def test_a_thread_that_is_stuck_gives_the_job_back_and_ends_the_replica(
    config: ServeConfig, store: JobStore, left: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.engine.DEAF_S", 0.3)
    add(config, store)
    groups, release = Groups(), threading.Event()
    engine = engine_of(config, store, groups)
    monkeypatch.setattr(groups.made[0], "start", lambda request: release.wait(20))
    try:
        assert run(engine) == "lost"
        assert get(store).status == "queued"
        assert left == [engine], "its processes hold GPUs"
        with pytest.raises(EngineBroken, match="nothing was heard"):
            engine.check_health()
    finally:
        groups.made[0].close()
        release.set()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), "oom", "fewer frames"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom", "fewer frames"),
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
    groups = Groups(drawing)
    engine = engine_of(config, store, groups)
    assert run(engine) == "failed"
    job = get(store)
    assert (job.status, job.error_code) == ("failed", code)
    assert message in (job.error_message or "")
    assert "secret" not in (job.error_message or "")
    engine.check_health()
    assert left == []
    assert len(groups.made) == (2 if code == "oom" else 1), "a group without memory left is made anew"


def test_a_fault_of_a_process_costs_a_group_and_an_attempt(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    drawing = Drawing()

    def fail(step: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access in /srv/secret/kernel.cu")

    drawing.before_step = fail
    engine = engine_of(config, store, drawing)
    for attempt in (1, 2, 3):
        assert run(engine) == "lost"
        job = get(store)
        assert (job.status, job.attempts) == ("queued" if attempt < 3 else "failed", attempt)
    assert job.error_code == "rank_lost"
    assert "RuntimeError" in (job.error_message or "")
    assert "secret" not in (job.error_message or "")


def test_what_may_be_the_coordinators_fault_ends_it(
    config: ServeConfig, store: JobStore, left: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(config, store)
    engine = engine_of(config, store)

    def unreadable(self: Path) -> bytes:
        raise OSError("the server hung up on /srv/secret")

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    assert run(engine) == "lost"
    monkeypatch.undo()
    assert left == [engine]
    job = get(store)
    assert (job.status, job.attempts) == ("queued", 0), "a store's fault is not the job's"


def test_a_storage_that_is_not_there_costs_no_job(
    config: ServeConfig, store: JobStore, left: list[Engine], tmp_path: Path
) -> None:
    add(config, store)
    engine = engine_of(config, store)
    config.inputs().rename(tmp_path / "unmounted")
    assert run(engine) == "lost"
    assert (get(store).status, get(store).attempts, left) == ("queued", 0, [engine])


def test_a_result_that_cannot_be_written_costs_the_group_but_no_attempt(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    groups = Groups()
    engine = engine_of(config, store, groups)
    config.results().rename(config.results().with_name("elsewhere"))
    config.results().write_bytes(b"a file in the folder's place")
    assert run(engine) == "lost"
    assert (get(store).status, get(store).attempts, len(groups.made)) == ("queued", 0, 2)


def test_a_state_that_cannot_be_kept_or_is_anothers_stops_no_video(config: ServeConfig, store: JobStore) -> None:
    config = with_engine(config, keep_every=1)
    add(config, store)
    engine = engine_of(config, store)
    kept = config.states() / "video_a.safetensors"
    state = SamplerState("another request", 3, torch.zeros(1, 1, 1, 1, 1), "UniPCMultistepScheduler")
    kept.write_bytes(state.to_bytes())
    assert run(engine) == "completed"
    config.states().rename(config.states().with_name("elsewhere"))
    config.states().write_bytes(b"a file in the folder's place")
    add(config, store, "video_b")
    assert run(engine) == "completed"


def test_a_group_that_is_made_anew_lets_another_engine_be_called(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    drawing = Drawing()

    def fail(step: int) -> None:
        raise RuntimeError("CUDA error")

    drawing.before_step = fail
    engine = engine_of(config, store, drawing)
    assert run(engine) == "lost"
    assert engine.dispatcher.aside == ["call"]


def test_a_first_frame_that_is_gone_is_told(config: ServeConfig, store: JobStore) -> None:
    add(config, store)
    (config.inputs() / "video_a.png").unlink()
    assert run(engine_of(config, store)) == "failed"
    job = get(store)
    assert (job.error_code, "first frame is no longer there" in (job.error_message or "")) == ("invalid", True)


def test_the_jobs_adapters_are_fetched_checked_and_told_to_the_dispatcher(
    config: ServeConfig,
    store: JobStore,
    publish: Callable[..., Published],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path / "cache"))
    film, grain = publish("film-look"), publish("grain")
    drawing = Drawing()
    loads: list[list[tuple[Path, float]]] = []
    drawing.load_adapters = loads.append  # type: ignore[method-assign]
    engine = engine_of(config, store, drawing)
    both = ServedAdapter(ref=film.ref, sha256=film.sha256, scale=0.8), ServedAdapter(ref=grain.ref, sha256=grain.sha256)
    add(config, store, "video_a", both)
    assert run(engine) == "completed"
    (first, second) = loads[0]
    assert (first[1], second[1]) == (0.8, 1.0)
    weights = [(folder / DIFFUSERS_FILE).read_bytes() for folder, _ in loads[0]]
    assert weights == [b"film-look", b"grain"]
    assert engine._loaded == get(store).adapter

    add(config, store, "video_b", (ServedAdapter(ref=film.ref, sha256="0" * 64),))
    assert run(engine) == "failed"
    assert "is another one now" in (get(store, "video_b").error_message or "")


def test_folders_are_stripped_from_messages() -> None:
    assert explain(AdapterError("'/srv/a b/x.json' and https://x/y"))[0] == "invalid"
    assert explain(AdapterError("/srv/store/cards/card.json is bad"))[1] == "card.json is bad"
