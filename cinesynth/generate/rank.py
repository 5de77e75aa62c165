"""One process of a group that makes videos: it keeps a model, makes what it is told in a thread of its own, and answers
meanwhile."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from PIL import Image

from cinesynth.config import SamplerSettings
from cinesynth.data.dataset import ClipsDataset
from cinesynth.data.video import write_video
from cinesynth.errors import (
    AdapterError,
    CinesynthError,
    MediaError,
    OutOfMemory,
    StateOfAnother,
    StorageError,
    StorageFailed,
)
from cinesynth.generate.course import Cancelled, Course
from cinesynth.generate.held_out import HeldOutVideos
from cinesynth.generate.messages import Outcome, Place, Status, VideoRequest
from cinesynth.generate.placing import choose_placing
from cinesynth.generate.ranks import Ranks
from cinesynth.generate.sampler import GeneratedVideo, Generator
from cinesynth.generate.shape import GroupShape
from cinesynth.generate.state import SamplerState
from cinesynth.locate import locate_adapter
from cinesynth.pictures import read_picture
from cinesynth.processor import device_title
from cinesynth.storage import Storage, sha256_file
from cinesynth.wan.card import Parent
from cinesynth.wan.device_memory import is_out_of_memory, told_out_of_memory

log = logging.getLogger("cinesynth.generate")

_MORE_MEMORY = "ask for smaller videos or more ranks"

Value = TypeVar("Value")


def check_same_adapters(request: VideoRequest, applied: list[Parent]) -> list[Parent]:
    """What is loaded for a request. Raises AdapterError where the files were exchanged since they were checked."""
    for (ref, _), checked, found in zip(request.adapters, request.adapter_sha256, applied, strict=True):
        if found.sha256 != checked:
            raise AdapterError(
                f"adapter {ref} is another one now ({found.sha256[:12]}, not {checked[:12]} as the run recorded it); "
                "put that one back on every node, or use another run name"
            )
    return applied


class Rank:
    """A process of a group.

    Args:
        shape: of the group. Every node reads its model; with GPUs this process computes on the one that it sees.
        number: of this rank.
    """

    def __init__(self, shape: GroupShape, number: int) -> None:
        torch.set_num_threads(max(1, int(shape.cpus)))
        self.shape, self.number = shape, number
        self.model, self.size = shape.model, shape.ranks
        self.device = "cuda" if shape.gpus else "cpu"
        self._store: Any = None
        self._generator: Generator | None = None
        self._datasets: dict[tuple[Any, ...], HeldOutVideos] = {}
        self._work: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._status = Status()
        self._at = self._entered = time.monotonic()
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._seconds: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Rank({self.number} of {self.size}, {self.model})"

    def offer(self, host: str) -> int:
        """Of rank 0: open the group's rendezvous; returns its port, which the system picks."""
        self._store = dist.TCPStore(host, 0, self.size, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def join(self, host: str, port: int) -> dict[str, Any]:
        """Meet the other ranks, and load the model. Returns this process's `pid`, `host` and `device`, and
        `load_seconds`."""
        started = time.monotonic()
        if self.size > 1:
            store = self._store or dist.TCPStore(host, port, self.size, is_master=False)
            backend = "cpu:gloo,cuda:nccl" if self.device == "cuda" else "cpu:gloo"
            dist.init_process_group(backend, store=store, rank=self.number, world_size=self.size)
        shape, ranks = self.shape, Ranks(self.number, self.size, self.device)
        strategy = choose_placing(self.model, shape.strategy, shape.sizes, ranks)
        make = shape.generator or Generator
        try:
            self._generator = make(self.model, self.device, ranks, shape.kernels, strategy, shape.merge)
        except Exception as e:
            if is_out_of_memory(e):
                raise OutOfMemory(f"loading the model: {told_out_of_memory(e, self.device, _MORE_MEMORY)}") from e
            raise
        process = {"pid": os.getpid(), "host": socket.gethostname(), "device": device_title(self.device)}
        return {**process, "load_seconds": time.monotonic() - started}

    def start(self, request: VideoRequest) -> None:
        """Begin a video. Raises RuntimeError while another one is being made."""
        if self._work is not None:
            if not self._ended.is_set():
                raise RuntimeError("a video is being made")
            self._work.join()  # its thread may still be ending, after the outcome was told
        self._outcome = None
        self._ended.clear()
        self._cancelled.clear()
        self._seconds = {}
        self._enter("adapters")
        self._work = threading.Thread(target=self._run, args=(request,), name="video", daemon=True)
        self._work.start()

    def status(self) -> Status:
        """How far the video is."""
        s = self._status
        return Status(s.stage, s.step, s.total, time.monotonic() - self._at)

    def outcome(self, wait_s: float = 0.0) -> Outcome | None:
        """How the video ended, as soon as it did; None where it is still being made after `wait_s`."""
        self._ended.wait(wait_s)
        return self._outcome

    def cancel(self) -> None:
        """Call the video off: it ends after the step, or the latent frame, that it is in."""
        self._cancelled.set()

    def _run(self, request: VideoRequest) -> None:
        try:
            outcome = Outcome("made", made=self._make(request))
        except Cancelled as e:
            outcome = Outcome("cancelled", str(e))
        except (OSError, StorageError) as e:
            log.exception("rank %d failed", self.number)
            outcome = Outcome("broken", f"{type(e).__name__}: {e}", StorageFailed.__name__)
        except CinesynthError as e:
            outcome = Outcome("refused", str(e), type(e).__name__)
        except BaseException as e:  # whatever it is, the other ranks may be waiting in a collective
            log.exception("rank %d failed", self.number)
            if is_out_of_memory(e):
                outcome = Outcome("broken", told_out_of_memory(e, self.device, _MORE_MEMORY), OutOfMemory.__name__)
            else:
                outcome = Outcome("broken", f"{type(e).__name__}: {e}")
        self._enter("idle")
        self._outcome = outcome
        self._ended.set()

    def _make(self, request: VideoRequest) -> dict[str, Any]:
        generator = self._generator
        assert generator is not None
        storage = Storage(*request.storage)

        def located() -> list[tuple[Path, float]]:
            return [(locate_adapter(storage, ref), scale) for ref, scale in request.adapters]

        generator.load_adapters(self._agreed(AdapterError, located))
        if request.adapter_sha256:
            self._agreed(AdapterError, lambda: check_same_adapters(request, generator.applied))
        output = Storage(*request.output)

        def keep(state: SamplerState) -> None:
            if request.state is None:
                return
            try:
                output.write_bytes(request.state, state.to_bytes())
            except (OSError, StorageError) as e:  # the video does not depend on it
                log.warning("the state after step %d is not kept: %s", state.step, e)

        course = Course(
            on_stage=self._enter,
            on_step=self._stepped,
            stops=self._stops,
            keep_every=request.keep_every,
            keep=keep,
            state=self._state(output, request.state),
        )
        self._enter("conditions")
        try:
            video = self._video(generator, request, course)
        except StateOfAnother as e:  # before the first step, on all ranks
            log.warning("%s", e)
            video = self._video(generator, request, replace(course, state=None))
        self._enter("write")
        if self.number:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(request.file).name
            codec: Literal["h264", "ffv1"] = "h264" if request.file.endswith(".mp4") else "ffv1"
            provenance = {**video.provenance, **request.told}
            write_video(path, video.frames, generator.fps, codec, provenance)
            sha256 = sha256_file(path)
            output.upload(path, request.file)
        if request.state is not None and request.drop_state:
            output.delete(request.state)
        self._enter("idle")
        seconds = {stage: round(spent, 3) for stage, spent in self._seconds.items()}
        return {"sha256": sha256, "provenance": provenance, "seconds": seconds}

    def _video(self, generator: Generator, request: VideoRequest, course: Course) -> GeneratedVideo:
        if request.window is not None:
            place, split, window_id = request.window
            held_out = self._held_out(place, split, request.sampler)
            return held_out.make(window_id, request.sampler.seed, lambda c, s: generator.generate_from(c, s, course))
        data = request.image
        assert data is not None
        image = self._agreed(MediaError, lambda: Image.new("RGB", (1, 1)) if self.number else read_picture(data))
        return generator.generate(
            image,
            request.prompt,
            request.num_frames,
            request.height,
            request.width,
            request.sampler,
            course,
            request.start_sigma,
        )

    def _agreed(self, error: type[CinesynthError], action: Callable[[], Value]) -> Value:
        """What an action gives on this rank. Where it is refused on any, `error` is raised on all."""
        assert self._generator is not None
        found, reason = None, None
        try:
            found = action()
        except StorageError:  # no fault of the request: the group ends
            raise
        except CinesynthError as e:
            reason = str(e)
        if reasons := self._generator.ranks.reasons(reason):
            raise error(reasons[0])
        assert found is not None
        return found

    def _state(self, output: Storage, file: str | None) -> SamplerState | None:
        """The state that a former attempt kept, on all ranks."""
        assert self._generator is not None
        found = b""
        if self.number == 0 and file is not None and output.exists(file):
            found = output.read_bytes(file)
            try:
                SamplerState.from_bytes(found)
            except MediaError as e:
                log.warning("%s is damaged, and the video is started anew: %s", file, e)
                found = b""
        found = self._generator.ranks.broadcast(found)
        return SamplerState.from_bytes(found) if found else None

    def _held_out(self, place: Place, split: Literal["val", "test"], sampler: SamplerSettings) -> HeldOutVideos:
        key = (repr(place), split, sampler.model_copy(update={"seed": 0}).model_dump_json())
        if key not in self._datasets:
            assert self._generator is not None
            clips = ClipsDataset.open(Storage(*place))
            self._datasets = {
                key: HeldOutVideos(self.model, clips, split, clips.windows(split), sampler, self._generator.encoder)
            }
        return self._datasets[key]

    def _stepped(self, step: int, total: int) -> None:
        self._status, self._at = Status("denoise", step, total), time.monotonic()

    def _stops(self) -> bool:
        self._at = time.monotonic()
        return self._cancelled.is_set()

    def _enter(self, stage: str) -> None:
        now = time.monotonic()
        if self._status.stage != "idle":
            self._seconds[self._status.stage] = self._seconds.get(self._status.stage, 0.0) + now - self._entered
        self._entered = self._at = now
        started = stage == "adapters"  # of another video
        self._status = Status(stage) if started else Status(stage, self._status.step, self._status.total)
