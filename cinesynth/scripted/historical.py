"""The historical look: masonry, cloth and wood, things of another age, candlelight, and grainy warm film."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.look import Look
from cinesynth.scripted.painting import Array, Sprite, blend, glow, soft_step, tiles
from cinesynth.scripted.screenplay import Shot
from cinesynth.scripted.vocabulary import Colour, vocabulary_of

_COLOURS = vocabulary_of("historical").colours
_FLAME: Colour = (255, 216, 128)
_BRONZE: Colour = (148, 104, 56)
_DARK: Colour = (58, 44, 36)
_CANDLE = np.array([1.18, 0.96, 0.66], np.float32)  # its light, RGB
_DAYLIGHT = np.array([1.0, 1.0, 0.94], np.float32)
_SEPIA = np.array([1.12, 0.97, 0.7], np.float32)
_PRINT = np.array([1.03, 1.0, 0.93], np.float32)
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_LENS = 1 / 140
_GRAIN = 0.018


# --- sets ----------------------------------------------------------------------------------------------------


def _texture(shot: Shot, x: Array, y: Array, noise: Array) -> Array:
    a, b = (np.array(_COLOURS[name], np.float32) for name in shot.texture_colours)
    paint = {
        "masonry": _masonry,
        "panelling": _panelling,
        "damask": _damask,
        "tapestry": _tapestry,
        "arcade": _arcade,
        "curtain": _curtain,
    }[shot.texture]
    worn = paint(shot, x, y, noise, a, b) * (0.72 + 0.5 * noise)[..., None]
    return np.clip(worn, 0, 255).astype(np.float32)


def _masonry(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    width = 0.46 * shot.texture_scale
    blocks = tiles(x + 0.01 * noise, y + 0.02 * noise, width, width / 2, shifted=True)
    tone = 0.7 + 0.5 * blocks.random(shot.texture_seed) - 0.25 * blocks.down
    return blend(b * 0.55, a * tone[..., None], soft_step(blocks.edge - 0.014, 0.006))


def _panelling(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    panels = tiles(x, y, 0.52 * shot.texture_scale, 0.78 * shot.texture_scale)
    grain = 0.86 + 0.14 * np.sin(46 * x + 14 * noise + 6 * panels.random(shot.texture_seed))
    raised = soft_step(panels.edge - 0.1, 0.008)
    wood = a * (grain * (0.78 + 0.22 * raised))[..., None]
    moulding = glow(panels.edge - 0.09, 0.016) * (0.85 - 0.9 * panels.down)
    joint = 1 - 0.75 * glow(panels.edge, 0.014)
    return blend(wood, b, np.clip(moulding, 0, 1)) * joint[..., None]


def _damask(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    k = math.pi / (0.3 * shot.texture_scale)
    u, v = k * x, 0.62 * k * y
    petals = np.cos(u) * np.cos(v) + 0.45 * np.cos(3 * u) * np.cos(v) - 0.3 * np.cos(u) * np.cos(3 * v)
    figure = soft_step(np.abs(petals) - 0.42, 0.07) * (1 - 0.75 * glow(np.abs(petals) - 0.95, 0.1))
    return blend(b * 0.7, a, figure)


def _tapestry(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    side = 0.36 * shot.texture_scale
    lozenges = tiles(x + 0.7 * y, x - 0.7 * y, side, side)
    checked = ((lozenges.row + lozenges.column) % 2).astype(np.float32)
    field = blend(a, a * 0.55 + b * 0.12, checked)
    flower = soft_step(0.2 - np.hypot(lozenges.across, lozenges.down), 0.04)
    seam = glow(lozenges.edge, 0.02)
    gold = np.array(_COLOURS["gold"], np.float32)
    return blend(blend(field, b, seam), gold, flower * (1 - 0.5 * checked))


def _arcade(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """Round arches on columns; the sky behind them ends at a dark horizon."""
    bay = 0.84 * shot.texture_scale
    across = (x / bay - np.floor(x / bay) - 0.5) * bay
    radius, spring = 0.34 * bay, -0.12
    inside = radius - np.where(y > spring, np.abs(across), np.hypot(across, y - spring))
    low = soft_step(y - 0.3 - 0.04 * np.sin(9 * x), 0.01)
    sky = blend(b * 0.62, b * 0.5 + np.array([118, 88, 44], np.float32), np.clip((y + 0.9) / 1.2, 0, 1))
    beyond = blend(sky, b * 0.16 + 8, low)
    courses = tiles(x, y, bay / 4, 0.19, shifted=True)
    stone = a * (0.82 + 0.3 * courses.random(shot.texture_seed) - 0.35 * glow(courses.edge, 0.012))[..., None]
    ring = glow(inside + 0.045, 0.03)
    wall = blend(stone, a * 1.25, 0.7 * ring) * (1 - 0.4 * glow(inside, 0.02))[..., None]
    floor = soft_step(y - 0.62, 0.01)
    return blend(blend(wall, beyond, soft_step(inside, 0.008)), a * 0.42, floor)


def _curtain(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    fold = 2 * math.pi / (0.34 * shot.texture_scale) * (x + 0.12 * noise + 0.02 * np.sin(3 * y))
    shade = 0.58 + 0.42 * np.sin(fold) + 0.12 * np.sin(2.3 * fold + 1)
    hem = soft_step(0.035 - np.abs(y - 0.4), 0.008) + soft_step(0.035 - np.abs(y + 0.6), 0.008)
    folded = np.clip(shade, 0.1, 1.1).astype(np.float32)
    return blend(a, b * 1.1, np.clip(hem, 0, 1)) * folded[..., None]


# --- things --------------------------------------------------------------------------------------------------


def _sprite(shot: Shot, u: Array, v: Array) -> Array:
    """Lit from the left; what burns shines on its own."""
    thing = Sprite(u, v)
    lit = np.clip(0.98 - 0.5 * u - 0.12 * v, 0.3, 1.35)
    metal = 0.62 + 0.75 * glow(u + 0.24, 0.17) + 0.25 * glow(u - 0.34, 0.1)
    draw = {
        "candle": _candle,
        "goblet": _goblet,
        "shield": _shield,
        "crown": _crown,
        "urn": _urn,
        "lantern": _lantern,
    }[shot.shape or "candle"]
    draw(thing, _COLOURS[shot.colour], lit.astype(np.float32), metal.astype(np.float32))
    return thing.rgba()


def _candle(thing: Sprite, colour: Colour, lit: Array, metal: Array) -> None:
    thing.paint(thing.ellipse(0, 0.92, 0.66, 0.14), _BRONZE, metal)
    thing.paint(thing.box(-0.25, -0.1, 0.25, 0.92), colour, lit)
    thing.paint(thing.ellipse(0, -0.1, 0.25, 0.07), colour, 1.25)
    thing.paint(thing.box(-0.03, -0.3, 0.03, -0.08), _DARK)
    thing.paint(thing.ellipse(0, -0.5, 0.16, 0.3), _FLAME)
    thing.paint(thing.ellipse(0, -0.42, 0.08, 0.17), (255, 250, 220))
    thing.shine(0, -0.45, 0.55, _FLAME, 0.75)


def _goblet(thing: Sprite, colour: Colour, lit: Array, metal: Array) -> None:
    thing.paint(thing.ellipse(0, 0.92, 0.5, 0.14), colour, metal)
    thing.paint(thing.box(-0.09, 0.1, 0.09, 0.9), colour, metal)
    thing.paint(thing.ellipse(0, 0.42, 0.19, 0.11), colour, metal)
    thing.paint(thing.ellipse(0, -0.75, 0.6, 1.02) & (thing.v > -0.75), colour, metal)
    thing.paint(thing.ellipse(0, -0.75, 0.6, 0.15), _DARK)
    thing.paint(thing.ellipse(0, -0.72, 0.5, 0.1), (120, 22, 36))


def _shield(thing: Sprite, colour: Colour, lit: Array, metal: Array) -> None:
    side = [(0.86, -0.9), (0.86, 0.0), (0.68, 0.5), (0.36, 0.86), (0.0, 1.1)]
    outline = side + [(-x, y) for x, y in reversed(side)]
    thing.paint(thing.outline(outline), _BRONZE, metal)
    inner = thing.outline([(0.88 * x, 0.88 * y) for x, y in outline])
    thing.paint(inner, colour, lit)
    light = sum(colour) > 400
    cross = thing.box(-0.14, -1, 0.14, 1) | thing.box(-1, -0.36, 1, -0.08)
    thing.paint(inner & cross, _COLOURS["burgundy"] if light else _COLOURS["ivory"], lit)


def _crown(thing: Sprite, colour: Colour, lit: Array, metal: Array) -> None:
    points = [(-1.0, -0.55), (-0.5, 0.05), (0.0, -0.8), (0.5, 0.05), (1.0, -0.55), (0.82, 0.72), (-0.82, 0.72)]
    thing.paint(thing.outline(points), colour, metal)
    thing.paint(thing.box(-0.82, 0.42, 0.82, 0.74), colour, 0.7 * metal)
    for x, y in ((-1.0, -0.58), (0.0, -0.84), (1.0, -0.58)):
        thing.paint(thing.ellipse(x, y, 0.13, 0.13), _COLOURS["ivory"], lit)
    for x, jewel in ((-0.48, (170, 26, 40)), (0.0, (36, 96, 72)), (0.48, (170, 26, 40))):
        thing.paint(thing.ellipse(x, 0.58, 0.12, 0.1), jewel)


def _urn(thing: Sprite, colour: Colour, lit: Array, metal: Array) -> None:
    handles = thing.ellipse(0, -0.32, 0.84, 0.36) & ~thing.ellipse(0, -0.32, 0.68, 0.24)
    thing.paint(handles, colour, 0.75 * lit)
    thing.paint(thing.box(-0.4, 0.84, 0.4, 1.0), colour, 0.8 * lit)
    thing.paint(thing.ellipse(0, 0.22, 0.72, 0.72), colour, lit)
    thing.paint(thing.box(-0.26, -0.9, 0.26, -0.3), colour, lit)
    thing.paint(thing.ellipse(0, -0.92, 0.42, 0.12), colour, 1.15 * lit)
    band = thing.ellipse(0, 0.22, 0.72, 0.72) & (np.abs(thing.v - 0.1) < 0.16)
    key = np.sin(14 * thing.u) * np.sign(thing.v - 0.1) > 0
    thing.paint(band, _DARK, lit)
    thing.paint(band & key & (np.abs(thing.v - 0.1) < 0.11), _COLOURS["ivory"], lit)


def _lantern(thing: Sprite, colour: Colour, lit: Array, metal: Array) -> None:
    ring = thing.ellipse(0, -0.95, 0.2, 0.2) & ~thing.ellipse(0, -0.95, 0.12, 0.12)
    thing.paint(ring, _DARK, metal)
    thing.paint(thing.outline([(-0.62, -0.4), (0.0, -0.86), (0.62, -0.4)]), colour, metal)
    thing.paint(thing.box(-0.5, -0.42, 0.5, 0.8), _FLAME, 0.82)
    thing.paint(thing.ellipse(0, 0.28, 0.16, 0.32), (255, 248, 214))
    for x in (-0.48, 0.0, 0.48):
        thing.paint(thing.box(x - 0.05, -0.42, x + 0.05, 0.8), colour, metal)
    thing.paint(thing.box(-0.62, 0.76, 0.62, 0.96), colour, metal)
    thing.shine(0, 0.2, 0.7, _FLAME, 0.6)


# --- light and film ------------------------------------------------------------------------------------------


def _light(shot: Shot, t: float, x: Array, y: Array) -> Array:
    """Daylight from the left, or a pool of candlelight whose flame is never still."""
    if shot.light == "steady":
        return ((1.12 - 0.5 * (x + 0.5) - 0.4 * y * y)[..., None] * _DAYLIGHT).astype(np.float32)
    turn = 2 * math.pi * shot.phase
    restless = 0.10 if shot.light == "flicker" else 0.03
    flame = 1 + restless * (
        math.sin(14.5 * t + turn) + 0.7 * math.sin(23.1 * t + 2 * turn) + 0.6 * math.sin(4.7 * t + 3 * turn)
    )
    share = t / shot.duration
    level = {"dim": 1.1 - 0.65 * share, "grow": 0.45 + 0.65 * share}.get(shot.light, 1.05)
    from_flame = np.hypot(x - 0.16 * math.cos(turn), y - 0.12 * math.sin(turn))
    pool = 0.42 + 0.74 * glow(from_flame, 0.46 * (0.6 + 0.4 * flame))
    return ((level * flame * pool)[..., None] * _CANDLE).astype(np.float32)


def _finish(frames_THWC: NDArray[np.uint8], seed: int, fps: float) -> NDArray[np.uint8]:
    """Lifted blacks, little saturation, sepia and coarse grain, which is another one in each frame."""
    rng = np.random.default_rng([seed, 2])
    out = np.empty_like(frames_THWC)
    coarse = max(0.7, frames_THWC.shape[1] / 240)
    for i, frame in enumerate(frames_THWC):
        rgb = frame.astype(np.float32) / 255
        luma = (rgb @ _LUMA)[..., None]
        faded = luma + 0.72 * (rgb - luma)
        warm = 0.7 * faded + 0.3 * luma * _SEPIA
        toned = 0.055 + 0.9 * (warm + 0.12 * (warm * warm * (3 - 2 * warm) - warm))
        grain = cv2.GaussianBlur(rng.standard_normal(frame.shape[:2], np.float32), (0, 0), coarse)
        grain *= _GRAIN / max(float(grain.std()), 1e-6)
        out[i] = np.round(np.clip(toned * _PRINT + grain[..., None], 0, 1) * 255)
    return out


HISTORICAL = Look(texture=_texture, sprite=_sprite, light=_light, finish=_finish, lens=_LENS)
