"""What goes on beside the making of a video: progress, calling it off, states to go on from. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cinesynth.generate.state import SamplerState

OnStep = Callable[[int, int], None]


class Cancelled(Exception):
    """A video that was called off; raised between two denoising steps or two latent frames, on every rank."""


class BrokenModel(Exception):
    """A generator whose weights are in no known state. It has to be made anew."""


@dataclass(frozen=True)
class Course:
    """What goes on beside the making of a video, on this rank.

    Attributes:
        on_stage: called with `denoise` and `decode` as each of them begins.
        on_step: called with (step, total) after each denoising step. What it raises on a rank of several is an error.
        stops: whether the video was called off. Asked after each step and before each latent frame is decoded; where it
            is on one rank, all end.
        keep_every: steps between two states that are kept; 0: none.
        keep: takes a state. Called on rank 0.
        state: to go on from.
    """

    on_stage: Callable[[str], None] = lambda stage: None
    on_step: OnStep = lambda step, total: None
    stops: Callable[[], bool] = lambda: False
    keep_every: int = 0
    keep: Callable[[SamplerState], None] = lambda state: None
    state: SamplerState | None = None


UNWATCHED = Course()
"""Nothing goes on beside it."""
