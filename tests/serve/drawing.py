"""A small real generator for the tests of everything around it: it draws a bar that moves over the first frame.

Ranks run it in place of `Generator`: in processes of a real group, or in this process (`LocalGroup`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cinesynth.errors
from cinesynth.config import SamplerSettings
from cinesynth.errors import GenerationError, RankLost
from cinesynth.generate.course import UNWATCHED, Cancelled, Course
from cinesynth.generate.messages import Outcome, Status, VideoRequest
from cinesynth.generate.rank import Rank
from cinesynth.generate.ranks import Ranks
from cinesynth.generate.sampler import GeneratedVideo
from cinesynth.generate.shape import GroupShape
from cinesynth.generate.state import SamplerState
from cinesynth.wan.load import load_scheduler
from serve.config import ServeConfig


class Drawing:
    """Draws one bar position a frame; `before_step(step)` is called before each step, for tests to hook in."""

    fps = 16

    def __init__(self, model: str = "nano", device: str = "cpu", ranks: Ranks | None = None, *_: Any) -> None:
        self.model, self.ranks = model, ranks or Ranks()
        self.adapters: list[tuple[Path, float]] = []
        self.began_at: list[int] = []
        """The step that each video began at."""
        self.before_step: Callable[[int], None] = lambda step: None

    def load_adapters(self, adapters: list[tuple[Path, float]]) -> None:
        self.adapters = adapters

    def generate(
        self,
        image: Image.Image,
        prompt: str,
        num_frames: int,
        height: int,
        width: int,
        sampler: SamplerSettings,
        course: Course = UNWATCHED,
        start_sigma: float | None = None,
    ) -> GeneratedVideo:
        request = f"{prompt} {sampler.model_dump_json()}"
        scheduler: Any = load_scheduler("nano")
        scheduler.set_timesteps(sampler.steps)
        latents = torch.zeros(1, 1, 1, 1, 1)
        done = 0
        if course.state is not None:
            done, latents = course.state.step, course.state.restore(scheduler, request, "cpu")
        self.began_at.append(done)
        course.on_stage("denoise")
        for step in range(done, sampler.steps):
            self.before_step(step)
            latents = scheduler.step(latents + step, scheduler.timesteps[step], latents, return_dict=False)[0]
            if self.ranks.any(course.stops()):
                raise Cancelled(f"after step {step + 1}")
            if self.ranks.rank == 0 and course.keep_every and (step + 1) % course.keep_every == 0:
                course.keep(SamplerState.of(request, step + 1, latents, scheduler))
            course.on_step(step + 1, sampler.steps)
        course.on_stage("decode")
        first = np.asarray(image.convert("RGB").resize((width, height)))
        frames = np.repeat(first[None], num_frames, axis=0)
        for t in range(num_frames):
            frames[t, :, t * (width - 4) // num_frames :][:, :4] = 255
        told = {"model": self.model, "seed": sampler.seed, "last": float(latents.sum())}
        return GeneratedVideo(frames, told)


class FileGated(Drawing):
    """Writes its process id to `<folder>/pids` when it starts a video, and waits after the first step until
    `<folder>/go` exists."""

    def __init__(self, folder: str, *args: Any) -> None:
        super().__init__(*args)
        self.folder = Path(folder)

    def generate(self, *args: Any, **kwargs: Any) -> GeneratedVideo:
        if args[1] != "warm-up":
            with open(self.folder / f"pids.{self.ranks.rank}", "a") as f:
                f.write(f"{os.getpid()}\n")

        def wait(step: int) -> None:
            while args[1] != "warm-up" and step == 2 and not (self.folder / "go").exists():
                time.sleep(0.02)

        self.before_step = wait
        made = super().generate(*args, **kwargs)
        if args[1] != "warm-up" and self.ranks.rank == 0:
            with open(self.folder / "began", "a") as f:
                f.write(f"{self.began_at[-1]}\n")
        return made


class LocalGroup:
    """A group of one rank in this process: the surface of `RankGroup`, over a real `Rank`."""

    def __init__(self, config: ServeConfig, generator: Callable[..., Any] = Drawing) -> None:
        shape = config.group_shape()
        self.rank = Rank(GroupShape(shape.model, quiet_s=shape.quiet_s, generator=generator), 0)
        self.rank.join("", 0)
        self.usable = True
        self.called_off = threading.Event()

    def alive(self) -> bool:
        return self.usable

    def start(self, request: VideoRequest) -> None:
        if not self.usable:
            raise RankLost("the group has ended")
        self.called_off.clear()
        self.rank.start(request)

    def cancel(self) -> None:
        self.called_off.set()
        self.rank.cancel()

    def result(self, look: Callable[[Status], None]) -> dict[str, Any]:
        while True:
            status = self.rank.status()
            look(status)
            if (outcome := self.rank.outcome()) is not None:
                return self._told(outcome)
            if not self.usable:
                raise RankLost("the group has ended")
            if status.quiet_s > self.rank.shape.quiet_s:
                self.usable = False
                raise RankLost(f"rank 0 of 1 got nothing done for {self.rank.shape.quiet_s:g} s")
            time.sleep(0.005)

    def _told(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.kind == "broken":
            self.usable = False
            raise getattr(cinesynth.errors, outcome.error or "RankLost")(outcome.reason)
        if outcome.kind == "cancelled":
            raise Cancelled(outcome.reason)
        if outcome.kind == "refused":
            raise getattr(cinesynth.errors, outcome.error, GenerationError)(outcome.reason)
        return outcome.made

    def close(self) -> None:
        self.usable = False
