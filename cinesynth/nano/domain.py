"""The home domain of the nano model: windows of scripted shots, whose caption and first frame say what happens."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from cinesynth.scripted.look import SHARP_LENS, SOFT_LENS
from cinesynth.scripted.photographs import HELD_OUT, TRAINED_ON, locate_photograph
from cinesynth.scripted.rendering import light_gain, render_shot
from cinesynth.scripted.screenplay import Shot, draw_screenplay
from cinesynth.storage import sha256_json
from cinesynth.wan.family import WAN21_I2V

HEIGHT, WIDTH, FRAMES, FPS = 64, 96, 33, WAN21_I2V.fps
TRAIN_SERIES, HELD_OUT_SERIES, FILM_LOOK_SERIES = 100, 101, 102
DOMAIN_VERSION = 3  # raised whenever a change alters windows


@dataclass(frozen=True)
class HomeWindow:
    """The first frames of a shot. Each window is a group of its own, as no two share a screenplay."""

    shot: Shot
    lens: float = SOFT_LENS

    @property
    def caption(self) -> str:
        return self.shot.caption

    def render(self, height: int = HEIGHT, width: int = WIDTH, frames: int = FRAMES) -> NDArray[np.uint8]:
        """uint8 RGB [frames, height, width, 3] at `FPS`."""
        return render_shot(self.shot, frames, FPS, height, width, self.lens)

    def still(self, first_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The first frame, standing still while the shot's light changes."""
        gains = np.stack([light_gain(self.shot, i / FPS, HEIGHT, WIDTH) for i in range(FRAMES)])
        return np.clip(np.round(first_HWC * gains / gains[:1]), 0, 255).astype(np.uint8)


def home_window(series: int, index: int, photographs: tuple[str, ...], look: str | None = None) -> HomeWindow:
    """Window `index` of a series."""
    return HomeWindow(draw_screenplay(series, index, photographs, look).shots[0])


def training_windows(count: int, photographs: tuple[str, ...] = TRAINED_ON) -> list[HomeWindow]:
    """The windows that the base model is trained on."""
    return [home_window(TRAIN_SERIES, i, photographs) for i in range(count)]


def held_out_windows(count: int) -> list[HomeWindow]:
    """Windows of other screenplays and other photographs than `training_windows`."""
    return [home_window(HELD_OUT_SERIES, i, HELD_OUT) for i in range(count)]


def film_look_windows(count: int) -> list[HomeWindow]:
    """Windows with the film look, of screenplays and photographs that the base model has not seen."""
    return [home_window(FILM_LOOK_SERIES, i, HELD_OUT, "film") for i in range(count)]


def sharp(windows: list[HomeWindow]) -> list[HomeWindow]:
    """The same shots through a sharp lens. The VAE learns from these, so that it keeps more than the domain needs."""
    return [replace(window, lens=SHARP_LENS) for window in windows]


def rendered(windows: list[HomeWindow], folder: Path, processes: int) -> NDArray[np.uint8]:
    """The windows' pixels [N, FRAMES, HEIGHT, WIDTH, 3] as a memory-mapped file in `folder`.

    They are rendered on first use. A call that was stopped is continued by the next one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = sha256_json([DOMAIN_VERSION, [asdict(w) for w in windows]])[:16]
    done, part = folder / f"windows-{identity}.npy", folder / f".part-{identity}.npy"
    if not done.is_file():
        for name in sorted({w.shot.texture for w in windows} & {*TRAINED_ON, *HELD_OUT}):
            locate_photograph(name)  # fetched here, not by every process at once
        _render_missing(windows, part, processes)
        os.replace(part, done)
    return np.load(done, mmap_mode="r")


def _render_missing(windows: list[HomeWindow], part: Path, processes: int) -> None:
    shape = (len(windows), FRAMES, HEIGHT, WIDTH, 3)
    pixels = open_memmap(part, mode="r+" if part.is_file() else "w+", dtype=np.uint8, shape=shape)
    # No rendered window has an all black first frame, so one that has was not written yet.
    missing = [i for i in range(len(windows)) if not pixels[i, 0].any()]
    for index, frames in _render_all([(i, windows[i]) for i in missing], processes):
        pixels[index] = frames
    pixels.flush()


def _render_all(tasks: list[tuple[int, HomeWindow]], processes: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    if processes == 1:
        yield from map(_render_one, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_render_one, tasks, chunksize=8)


def _render_one(task: tuple[int, HomeWindow]) -> tuple[int, NDArray[np.uint8]]:
    import cv2

    cv2.setNumThreads(1)
    return task[0], task[1].render()
