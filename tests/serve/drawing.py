"""A small real generator for the tests of everything around it: it draws a bar that moves over the first frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cinesynth.config import SamplerSettings
from cinesynth.generate.course import UNWATCHED, Course


@dataclass
class Drawn:
    frames: np.ndarray
    provenance: dict[str, Any]


class Drawing:
    """Draws one bar position a frame; `before_step(step)` is called before each step, for tests to hook in."""

    fps = 16

    def __init__(self, model: str = "drawing", device: str = "cpu") -> None:
        self.model = model
        self.adapters: list[tuple[Path, float]] = []
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
    ) -> Drawn:
        first = np.asarray(image.convert("RGB").resize((width, height)))
        for step in range(sampler.steps):
            self.before_step(step)
            course.on_step(step + 1, sampler.steps)
        frames = np.repeat(first[None], num_frames, axis=0)
        for t in range(num_frames):
            frames[t, :, t * (width - 4) // num_frames :][:, :4] = 255
        return Drawn(frames, {"model": self.model, "seed": sampler.seed})


class FileGated(Drawing):
    """Writes its process id to `<folder>/pids` when it starts a video, and waits after the first step until
    `<folder>/go` exists. The model's name is the folder."""

    def generate(self, *args: Any, **kwargs: Any) -> Drawn:
        import os

        folder = Path(self.model)
        with open(folder / "pids", "a") as f:
            f.write(f"{os.getpid()}\n")

        def wait(step: int) -> None:
            while step == 1 and not (folder / "go").exists():
                time.sleep(0.02)

        self.before_step = wait
        return super().generate(*args, **kwargs)
