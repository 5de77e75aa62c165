"""An engine replica: it leases one job at a time from the Dispatcher, makes the video, and reports how far it is.

The model runs in one thread. Meanwhile the replica's event loop renews the lease. When the lease is lost, or the
replica is being stopped, generation ends at the next denoising step. When the model makes no step for
`engine.step_timeout_s`, or fails in a way that another process may not, the job goes back to the queue and the process
ends: Serve starts another one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, Literal, Protocol

from PIL import Image, UnidentifiedImageError

from cinesynth.config import SamplerSettings
from cinesynth.data.video import write_video
from cinesynth.errors import AdapterError, GenerationError, MediaError
from cinesynth.generate.course import UNWATCHED, Cancelled, Course
from cinesynth.pictures import Frames
from cinesynth.registry import Registry
from cinesynth.storage import Storage, cache_folder, sha256_file
from serve.config import ServeConfig
from serve.dispatch import DISPATCHER, DispatcherJobs
from serve.jobs import ErrorCode, JobStore, Lease, P
from serve.schema import JobRequest

logger = logging.getLogger(__name__)

Outcome = Literal["empty", "completed", "failed", "lost"]

FINAL: tuple[ErrorCode, ...] = ("invalid", "oom")
"""Failures that another attempt would meet again."""
LEAVE_S = 0.5
"""Seconds between the answer to a call and the end of a broken engine's process."""


class Made(Protocol):
    """A video's frames (uint8 RGB [T, H, W, 3]) and what they were made with."""

    @property
    def frames(self) -> Frames: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


class VideoGenerator(Protocol):
    """What an engine runs; `cinesynth.generate.sampler.Generator` is one."""

    @property
    def fps(self) -> int: ...
    def load_adapters(self, adapters: list[tuple[Path, float]]) -> None: ...
    def generate(
        self,
        image: Image.Image,
        prompt: str,
        num_frames: int,
        height: int,
        width: int,
        sampler: SamplerSettings,
        course: Course = UNWATCHED,
    ) -> Made: ...


GeneratorFactory = Callable[[str, str], VideoGenerator]
"""Loads a generator, given the model and the torch device."""


def default_generator(model: str, device: str) -> VideoGenerator:
    """The generator of `cinesynth.generate`. It is imported here, so that only engines load torch."""
    from cinesynth.generate.sampler import Generator

    return Generator(model, device)


class LeaseLost(Exception):
    """Ends a generation that nobody waits for; raised between denoising steps."""


class EngineBroken(Exception):
    """The model cannot be loaded, or is stuck. The replica must be replaced."""


class Attempt:
    """The work on one lease. The model's thread and the event loop share it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.request = JobRequest.model_validate(lease.job.request)
        self.progress = 0
        self.alive_at = time.monotonic()
        self.lost = threading.Event()

    def alive(self) -> None:
        """Note that the model's thread got something done. Raises LeaseLost when it should stop."""
        if self.lost.is_set():
            raise LeaseLost(self.lease.job.id)
        self.alive_at = time.monotonic()

    def on_step(self, step: int, total: int) -> None:
        """Note that denoising step `step` of `total` is done. Raises LeaseLost when the model should stop."""
        self.progress = 100 * step // max(total, 1)
        self.alive()


class Engine:
    """The deployment "Engine": one process with one model.

    Args:
        config: resolved configuration.
        factory: makes the generator, in the model's thread.
        dispatcher: handle of the Dispatcher. Default: the one of this application.
    """

    def __init__(
        self, config: ServeConfig, factory: GeneratorFactory = default_generator, dispatcher: Any = None
    ) -> None:
        self.config = config
        self.registry = Registry(Storage.open(config.storage))
        self._dispatcher = dispatcher
        self._broken: str | None = None
        self._loaded: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        device = "cuda" if config.engine.gpus > 0 else "cpu"
        self._generator = self._thread.submit(factory, config.model, device)

    @property
    def dispatcher(self) -> Any:
        """The Dispatcher's handle. It is looked up late: the Dispatcher itself holds a handle of this deployment."""
        if self._dispatcher is None:
            from ray import serve as ray_serve

            self._dispatcher = ray_serve.get_deployment_handle(DISPATCHER, ray_serve.get_replica_context().app_name)
        return self._dispatcher

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self._broken:
            raise EngineBroken(self._broken)

    async def run_next(self, call_id: str) -> Outcome:
        """Lease the best job for this replica and work on it until it is done, failed or lost.

        Args:
            call_id: the Dispatcher's name for this call; it becomes the holder of the lease.
        """
        self.check_health()
        lease = await self.dispatcher.lease_next.remote(call_id, [self._loaded])
        if lease is None:
            return "empty"
        attempt = Attempt(lease)
        working = asyncio.get_running_loop().run_in_executor(self._thread, self._make, attempt)
        try:
            if not await self._watch(attempt, working):
                return "lost"
            name, sha256 = working.result()
        except asyncio.CancelledError:
            attempt.lost.set()
            raise
        except (LeaseLost, Cancelled):
            return "lost"
        except Exception as e:
            return await self._fail(attempt, e)
        return await self._complete(attempt, name, sha256)

    async def _watch(self, attempt: Attempt, working: asyncio.Future[Any]) -> bool:
        """Renew the lease until the work ends. False when it is stuck and was given up."""
        while True:
            await asyncio.wait({working}, timeout=self.config.heartbeat_s)
            if working.done():
                return True
            if time.monotonic() - attempt.alive_at > self.config.engine.step_timeout_s:
                break
            if not attempt.lost.is_set() and not await self._renew(attempt):
                attempt.lost.set()
        attempt.lost.set()
        self._broken = f"no progress for {self.config.engine.step_timeout_s:g} s"
        await self._give_back(attempt, "timeout", f"the engine made {self._broken}")
        return False

    async def _give_back(self, attempt: Attempt, code: ErrorCode, message: str) -> None:
        """Queue the job again for another engine, and end this one, whether or not that was taken."""
        try:
            await self._report(JobStore.give_up, attempt.lease.job.id, attempt.lease.token, code, message)
        finally:
            self._leave()

    def _leave(self) -> None:
        """End this process, once the call under way is answered: a model that hangs or is broken holds a GPU, which the
        replica that takes its place needs. Serve itself would drain it first."""
        asyncio.get_running_loop().call_later(LEAVE_S, os._exit, 1)

    async def _renew(self, attempt: Attempt) -> bool:
        try:
            jobs, lease = DispatcherJobs(self.dispatcher), attempt.lease
            renewing = jobs(JobStore.heartbeat, lease.job.id, lease.token, attempt.progress)
            return await asyncio.wait_for(renewing, self.config.lease_s / 2)
        except Exception as e:
            # The Dispatcher may be restarting. When it is back, the token decides whether the lease still holds.
            logger.warning("%s: heartbeat failed: %s", attempt.lease.job.id, e)
            return True

    async def _report(
        self, outcome: Callable[Concatenate[JobStore, P], bool], *args: P.args, **kwargs: P.kwargs
    ) -> bool:
        """Tell the Dispatcher an outcome. While it does not answer, try again for as long as a lease lasts."""
        deadline = time.monotonic() + self.config.lease_s
        while True:
            try:
                return await DispatcherJobs(self.dispatcher)(outcome, *args, **kwargs)
            except Exception as e:
                if time.monotonic() > deadline:
                    raise
                logger.warning("the Dispatcher did not take %s, trying again: %s", outcome.__name__, e)
                await asyncio.sleep(min(1.0, self.config.heartbeat_s))

    async def _complete(self, attempt: Attempt, name: str, sha256: str) -> Outcome:
        lease = attempt.lease
        if await self._report(JobStore.complete, lease.job.id, lease.token, name, sha256):
            return "completed"
        (self.config.results() / name).unlink(missing_ok=True)
        return "lost"

    async def _fail(self, attempt: Attempt, error: Exception) -> Outcome:
        lease = attempt.lease
        code, message = explain(error)
        logger.error("%s failed (%s)", lease.job.id, code, exc_info=error)
        if code in FINAL:
            return "failed" if await self._report(JobStore.fail, lease.job.id, lease.token, code, message) else "lost"
        # Perhaps the process is at fault, as after an error of the GPU: another one tries, and this one takes no more.
        self._broken = message
        await self._give_back(attempt, code, message)
        return "lost"

    # --- in the model's thread -------------------------------------------------------------------------------

    def _make(self, attempt: Attempt) -> tuple[str, str]:
        """Generate and store the video. Returns its file name and sha256."""
        try:
            generator = self._generator.result()
        except Exception as e:
            raise EngineBroken(f"the model cannot be loaded: {_without_folders(str(e))}") from e
        attempt.alive()
        request = attempt.request
        self._adapt(generator, request)
        attempt.alive()
        try:
            with Image.open(self.config.inputs() / attempt.lease.job.image) as image:
                image.load()
        except (FileNotFoundError, UnidentifiedImageError) as e:  # other errors are the folder's, and may pass
            raise MediaError(f"the first frame is no longer there ({type(e).__name__}); send the request again") from e
        made = generator.generate(
            image,
            request.prompt,
            request.num_frames,
            request.height,
            request.width,
            request.sampler,
            Course(on_step=attempt.on_step, stops=attempt.lost.is_set),
        )
        attempt.alive()
        return self._write(attempt, made, generator.fps)

    def _adapt(self, generator: VideoGenerator, request: JobRequest) -> None:
        if request.adapter == self._loaded:
            return
        adapters: list[tuple[Path, float]] = []
        if request.adapter is not None:
            adapters.append((self.registry.fetch(request.adapter, adapter_cache()), 1.0))
        generator.load_adapters(adapters)
        self._loaded = request.adapter

    def _write(self, attempt: Attempt, made: Made, fps: int) -> tuple[str, str]:
        """Store the video under a name with the lease's token, so that no attempt writes over another's file."""
        lease, folder = attempt.lease, self.config.results()
        name = f"{lease.job.id}.{lease.token}.mp4"
        request = attempt.request
        told = {"model": request.model, "job": lease.job.id, "request": request.model_dump(mode="json")}
        provenance = {**made.provenance, **told}
        temporary = write_video(folder / f".tmp-{name}", made.frames, fps, "h264", json.loads(json.dumps(provenance)))
        digest = sha256_file(temporary)
        _fsync(temporary)
        os.replace(temporary, folder / name)
        _fsync(folder)
        return name, digest


def adapter_cache() -> Path:
    """The folder of fetched adapters on this machine. An adapter's hash is checked whenever it is used."""
    return cache_folder("adapters")


def explain(error: Exception) -> tuple[ErrorCode, str]:
    """The error code and the message that the client sees. The details of a bug stay in the log."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom", "the engine ran out of memory; ask for fewer frames or a smaller size"
    if isinstance(error, EngineBroken):
        return "internal", str(error)
    if isinstance(error, MediaError | AdapterError | GenerationError):
        return "invalid", _without_folders(str(error))
    return "internal", f"the engine failed ({type(error).__name__}); the reason is in its log"


def _without_folders(message: str) -> str:
    """Without the server's folders, which are no client's business: /a/b/c.json becomes c.json."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":,;()]+/)+", "", message)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
