"""What a look brings to the scripted world: how its textures, things, light and film are painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.painting import Array
from cinesynth.scripted.screenplay import Shot

SOFT_LENS, SHARP_LENS = 1 / 24, 1 / 64  # deviation of the lens's blur, in view heights


@dataclass(frozen=True)
class Look:
    """How shots of one vocabulary are painted. Every function is pure.

    Attributes:
        texture: (shot, x, y, noise) to RGB 0..255 [rows, columns, 3]; x and y in view heights from the middle of the
            world, noise smooth and 0..1.
        sprite: (shot, u, v) to premultiplied RGBA [side, side, 4]; u and v in object radii from the thing's middle.
        light: (shot, t, x, y) to what the picture is multiplied with, [height, width, 1 or 3]; x and y are shares of
            the picture's sides from its middle, t in seconds.
        finish: (frames, seed, fps) to frames, uint8 RGB [T, H, W, 3]: grade, grain and what else the film does.
        lens: deviation of the lens's blur, in view heights.
    """

    texture: Callable[[Shot, Array, Array, Array], Array]
    sprite: Callable[[Shot, Array, Array], Array]
    light: Callable[[Shot, float, Array, Array], Array]
    finish: Callable[[NDArray[np.uint8], int, float], NDArray[np.uint8]] | None = None
    lens: float = SOFT_LENS
