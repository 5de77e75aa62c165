"""Brushes that all looks paint with: soft edges, smooth noise, lines that glow, and outlines of things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.vocabulary import Colour

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
SPRITE_REACH = 1.2
"""Half the side of a sprite, in object radii."""


def soft_step(value: NDArray[Any], softness: float) -> Array:
    """0 well below zero, 1 well above it."""
    return (0.5 + 0.5 * np.tanh(value / np.float32(softness))).astype(np.float32)


def smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Smooth noise with mean about 0.5: octaves of coarse random grids, enlarged."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(4):
        grid = rng.random((5 * 2**octave, 7 * 2**octave), np.float32)
        total += cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC) / np.float32(2**octave)
    return total / np.float32(1.875)


def glow(distance: NDArray[Any], width: NDArray[Any] | float) -> Array:
    """1 on a line, falling to 0 within twice its width."""
    return np.exp(-np.square(distance / np.asarray(width, np.float32))).astype(np.float32)


@dataclass(frozen=True)
class Tiles:
    """A plane divided into rectangles, every other row shifted by half of one.

    Attributes:
        column, row: which tile a place is in; integers.
        across, down: where in its tile it is, -0.5..0.5.
        edge: distance to the nearest edge, in the units of the plane.
    """

    column: NDArray[np.intp]
    row: NDArray[np.intp]
    across: Array
    down: Array
    edge: Array

    def random(self, seed: int) -> Array:
        """A random number in 0..1 for each tile."""
        table = np.random.default_rng(seed).random((61, 67), np.float32)
        return table[self.row % 61, self.column % 67]


def tiles(x: Array, y: Array, width: float, height: float, shifted: bool = False) -> Tiles:
    """The tiles of `width` x `height` at each place (x, y)."""
    row = np.floor(y / np.float32(height))
    moved = x / np.float32(width) + (0.5 * (row % 2) if shifted else 0)
    column = np.floor(moved)
    across, down = (moved - column - 0.5).astype(np.float32), (y / np.float32(height) - row - 0.5).astype(np.float32)
    edge = np.minimum((0.5 - np.abs(across)) * width, (0.5 - np.abs(down)) * height).astype(np.float32)
    return Tiles(column.astype(np.intp), row.astype(np.intp), across, down, edge)


def blend(under: NDArray[Any], over: NDArray[Any], share: Array) -> Array:
    """`over` laid on `under` (RGB) by the share 0..1 at each place."""
    return (under + (over - under) * share[..., None]).astype(np.float32)


def polygon(points: NDArray[np.float64], side: int) -> Mask:
    """The inside of a polygon on a sprite of `side` pixels; points in object radii from its middle."""
    pixels = np.round((points / SPRITE_REACH + 1) / 2 * (side - 1)).astype(np.int32)
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [pixels], 1)
    return mask.astype(bool)


@dataclass
class Sprite:
    """A thing that is put together from parts, the later ones in front.

    Attributes:
        u, v: places in object radii from its middle, [side, side]; right and down.
        rgb: colour 0..255, 0 where nothing is.
        alpha: 0 or 1.
        light: what glows around it, RGB; it hides nothing.
    """

    u: Array
    v: Array
    rgb: Array = field(init=False)
    alpha: Array = field(init=False)
    light: Array = field(init=False)

    def __post_init__(self) -> None:
        self.rgb, self.light = (np.zeros((*self.u.shape, 3), np.float32) for _ in range(2))
        self.alpha = np.zeros(self.u.shape, np.float32)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Mask:
        return ((self.u - x) / rx) ** 2 + ((self.v - y) / ry) ** 2 < 1

    def box(self, left: float, top: float, right: float, bottom: float) -> Mask:
        return (self.u > left) & (self.u < right) & (self.v > top) & (self.v < bottom)

    def outline(self, points: Sequence[tuple[float, float]]) -> Mask:
        return polygon(np.array(points, np.float64), len(self.u))

    def paint(self, part: Mask, colour: Colour, shade: Array | float = 1.0) -> None:
        """Put a part in front of what is there. `shade` multiplies its colour."""
        painted = np.array(colour, np.float32) * (np.broadcast_to(np.float32(shade), self.u.shape)[..., None])
        self.rgb = np.where(part[..., None], np.clip(painted, 0, 255), self.rgb).astype(np.float32)
        self.alpha = np.where(part, np.float32(1), self.alpha).astype(np.float32)

    def shine(self, x: float, y: float, radius: float, colour: Colour, strength: float) -> None:
        """Light around a place. It ends at the sprite's rim."""
        rim = np.clip(1 - (np.hypot(self.u, self.v) / SPRITE_REACH) ** 2, 0, 1) ** 2
        falloff = glow(np.hypot(self.u - x, self.v - y), radius) * rim * np.float32(strength)
        self.light += falloff[..., None] * np.array(colour, np.float32)

    def rgba(self) -> Array:
        """Premultiplied colour 0..255 and alpha 0..1, [side, side, 4]."""
        return np.dstack([np.clip(self.rgb + self.light, 0, 255), self.alpha]).astype(np.float32)
