"""The sci-fi look: hulls, circuits and night cities, machines that glow, neon, and a cold picture on a screen."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.look import Look
from cinesynth.scripted.painting import Array, Sprite, blend, glow, soft_step, tiles
from cinesynth.scripted.screenplay import Shot
from cinesynth.scripted.vocabulary import Colour, vocabulary_of

_COLOURS = vocabulary_of("sci-fi").colours
_NIGHT = np.array([9, 13, 26], np.float32)
_STEEL: Colour = (150, 164, 184)
_BLACK: Colour = (16, 20, 32)
_WHITE: Colour = (240, 250, 255)
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_SHADOWS = np.array([-0.02, 0.01, 0.05], np.float32)  # towards blue
_COLD = np.array([0.5, 1.0, 1.5], np.float32)  # what grey turns to
_CAST = 0.22  # share of it
_LENS = 1 / 170
_BLOOM, _SCAN, _BAND_S = 0.75, 0.1, 2.6  # strength of bloom and of scan lines; seconds of the band's way down


# --- sets ----------------------------------------------------------------------------------------------------


def _texture(shot: Shot, x: Array, y: Array, noise: Array) -> Array:
    a, b = (np.array(_COLOURS[name], np.float32) for name in shot.texture_colours)
    paint = {
        "hull": _hull,
        "city": _city,
        "nebula": _nebula,
        "grid": _grid,
        "circuit": _circuit,
        "hexagons": _hexagons,
    }[shot.texture]
    return np.clip(paint(shot, x, y, noise, a, b), 0, 255).astype(np.float32)


def _hull(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """Plates of two sizes; the seams of the large ones shine."""
    plates = tiles(x, y, 0.66 * shot.texture_scale, 0.4 * shot.texture_scale, shifted=True)
    small = tiles(x, y, 0.165 * shot.texture_scale, 0.2 * shot.texture_scale)
    tone = 0.14 + 0.2 * plates.random(shot.texture_seed) + 0.1 * small.random(shot.texture_seed + 1)
    metal = _NIGHT + a * (tone * (0.8 + 0.4 * noise) * (1 - 0.5 * glow(small.edge, 0.008)))[..., None]
    lamp = (small.random(shot.texture_seed + 2) > 0.93) * soft_step(0.25 - np.abs(small.across), 0.04)
    lamp = lamp * soft_step(0.12 - np.abs(small.down), 0.03)
    seam = glow(plates.edge, 0.011) + 0.28 * glow(plates.edge, 0.05)
    return metal + b * (seam + lamp)[..., None]


def _city(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """Three rows of towers with lit windows, the nearest in front."""
    picture = _NIGHT + b * (0.75 * np.clip((y + 1.1) / 1.4, 0, 1) ** 2)[..., None]
    for layer, (width, top, spread) in enumerate(((0.16, -0.05, 0.5), (0.24, 0.12, 0.55), (0.36, 0.38, 0.5))):
        seed = shot.texture_seed + layer
        towers = tiles(x + 0.37 * layer, np.zeros_like(y), width * shot.texture_scale, 1.0)
        roof = top - spread * towers.random(seed) * 1.4 + 0.25
        standing = soft_step(y - roof, 0.004) * soft_step(0.46 - np.abs(towers.across), 0.015)
        windows = tiles(x + 0.37 * layer, y, width * shot.texture_scale / 4, 0.055 + 0.012 * layer)
        pane = soft_step(0.3 - np.abs(windows.across), 0.05) * soft_step(0.26 - np.abs(windows.down), 0.05)
        lit = pane * (windows.random(seed + 7) > 0.55) * (0.35 + 0.65 * windows.random(seed + 9))
        wall = _NIGHT * 0.7 + a * (0.1 + 0.05 * (2 - layer))
        picture = blend(picture, wall + (a * 0.75 + 50) * lit[..., None], standing)
    return picture


def _nebula(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """Clouds of two colours, stars, and a planet that is lit from one side."""
    first, second = (np.clip(1.9 * share - 0.77, 0, 1)[..., None] ** 2 for share in (noise, noise[::-1, ::-1]))
    clouds = a * first + b * second
    cells = tiles(x, y, 0.075, 0.075)
    bright = cells.random(shot.texture_seed)
    offset = np.hypot(
        cells.across - 0.5 * (cells.random(shot.texture_seed + 1) - 0.5),
        cells.down - 0.5 * (cells.random(shot.texture_seed + 2) - 0.5),
    )
    stars = glow(offset, 0.14) * np.clip(bright - 0.7, 0, 1) * 3.3
    picture = _NIGHT * 0.6 + clouds + stars[..., None] * np.array(_WHITE, np.float32)
    radius = 0.3 * shot.texture_scale
    u, v = (x - 0.75 + 1.5 * shot.phase) / radius, (y + 0.12) / radius
    ball = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    day = np.clip(0.75 * ball - 0.6 * u - 0.3 * v, 0.02, 1.1) * (0.8 + 0.3 * np.sin(7 * v + 3 * noise))
    rim = glow(np.hypot(u, v) - 1, 0.07)
    return blend(picture, a * 0.9 * day[..., None], soft_step(1 - np.hypot(u, v), 0.02)) + b * (0.5 * rim)[..., None]


def _grid(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """A floor of shining lines that runs to the horizon, below a sun that is cut by bars."""
    sky = _NIGHT + b * (0.45 * np.clip(1 + y / 0.9, 0, 1) ** 3)[..., None]
    radius = 0.42 * shot.texture_scale
    from_sun = np.hypot(x, y + 0.1)
    bars = soft_step(np.sin(48 * y) - 0.35 + 2.2 * np.clip(-y - 0.12, 0, 1), 0.2)
    sun = soft_step(radius - from_sun, 0.008) * bars
    disc = b * 0.6 + 100 * np.clip(-y, 0, 1)[..., None]
    sky = blend(sky, disc, sun) + b * (0.4 * glow(from_sun, 1.5 * radius))[..., None]
    below = np.maximum(y, 0.004)
    row, column = 0.45 / below, 0.9 * x / below
    thin = 0.005 + 0.016 * below  # lines are thinner where they are far
    across = np.abs(row - np.round(row)) * below * below / 0.45
    along = np.abs(column - np.round(column)) * below / 0.9
    lines = np.clip(glow(across, thin) + glow(along, thin), 0, 1) * np.clip(y / 0.22, 0, 1) ** 1.5
    floor = _NIGHT * 0.8 + a * lines[..., None]
    horizon = glow(y, 0.02)
    return blend(sky, floor, soft_step(y, 0.003)) + a * (0.8 * horizon)[..., None]


def _circuit(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """Traces with pads at both ends, drawn from the seed, on a dark board."""
    rng = np.random.default_rng(shot.texture_seed)
    rows, columns = x.shape
    unit = rows / 3.0  # pixels per view height
    traces = np.zeros((rows, columns), np.uint8)
    thick = max(1, round(0.014 * unit))
    for _ in range(190):
        place = rng.integers((0, 0), (columns, rows)).astype(float)
        path = [place]
        turn = int(rng.integers(8))
        for _ in range(int(rng.integers(2, 5))):
            angle = math.pi / 4 * turn
            path.append(path[-1] + rng.uniform(0.08, 0.3) * unit * np.array([math.cos(angle), math.sin(angle)]))
            turn += int(rng.choice([-1, 1]))
        points = np.round(np.array(path)).astype(np.int32)
        cv2.polylines(traces, [points], False, 200, thick, cv2.LINE_AA)
        for end in (points[0], points[-1]):
            cv2.circle(traces, (int(end[0]), int(end[1])), max(2, round(0.024 * unit)), 255, -1, cv2.LINE_AA)
    shining = traces.astype(np.float32) / 255
    halo = cv2.GaussianBlur(shining, (0, 0), 0.03 * unit)
    chips = tiles(x, y, 0.5, 0.38)
    chip = (chips.random(shot.texture_seed + 3) > 0.7) * soft_step(chips.edge - 0.08, 0.006)
    board = _NIGHT + a * (0.2 * (0.7 + 0.6 * noise))[..., None]
    lit = board + b * (0.85 * shining + 0.7 * halo)[..., None]
    case = _NIGHT * 1.2 + a * (0.34 + 0.4 * glow(chips.edge - 0.09, 0.01))[..., None]
    return blend(lit, case, chip.astype(np.float32))


def _hexagons(shot: Shot, x: Array, y: Array, noise: Array, a: Array, b: Array) -> Array:
    """A honeycomb: of two grids of centres, shifted by half a step, the nearer one counts."""
    side = 0.3 * shot.texture_scale
    right, down = side, side * math.sqrt(3)
    centres = [(np.round(x / right - s) + s, np.round(y / down - s) + s) for s in (0.0, 0.5)]
    apart = [(x - cx * right, y - cy * down) for cx, cy in centres]
    nearer = np.hypot(*apart[0]) < np.hypot(*apart[1])
    dx, dy = (np.abs(np.where(nearer, apart[0][i], apart[1][i])) for i in range(2))
    edge = side / 2 - np.maximum(dx, dx / 2 + dy * (math.sqrt(3) / 2))
    table = np.random.default_rng(shot.texture_seed).random((61, 67), np.float32)
    column, row = (np.where(nearer, centres[0][i], centres[1][i]) * 2 for i in range(2))
    tone = table[row.astype(int) % 61, column.astype(int) % 67]
    tile = _NIGHT + a * (0.1 + 0.3 * tone * (0.6 + 0.8 * noise) + 0.5 * (tone > 0.9))[..., None]
    return tile + b * (0.9 * glow(edge, 0.012) + 0.25 * glow(edge, 0.045))[..., None]


# --- things --------------------------------------------------------------------------------------------------


def _sprite(shot: Shot, u: Array, v: Array) -> Array:
    """Of steel, lit from above, with lamps of the shot's colour."""
    thing = Sprite(u, v)
    steel = np.clip(0.85 - 0.45 * v + 0.35 * glow(v + 0.3, 0.2), 0.25, 1.4).astype(np.float32)
    draw = {
        "drone": _drone,
        "starship": _starship,
        "robot": _robot,
        "orb": _orb,
        "gate": _gate,
        "satellite": _satellite,
    }[shot.shape or "orb"]
    draw(thing, _COLOURS[shot.colour], steel)
    return thing.rgba()


def _drone(thing: Sprite, colour: Colour, steel: Array) -> None:
    for side in (-1, 1):
        thing.paint(thing.outline([(0, -0.1), (side * 0.8, -0.3), (side * 0.8, -0.18), (0, 0.16)]), _STEEL, steel)
        rotor = thing.ellipse(side * 0.78, -0.28, 0.38, 0.13)
        thing.paint(rotor, colour)
        thing.paint(thing.ellipse(side * 0.78, -0.28, 0.28, 0.08), _BLACK)
        thing.shine(side * 0.78, -0.28, 0.36, colour, 0.6)
    thing.paint(thing.ellipse(0, 0.06, 0.52, 0.4), _STEEL, steel)
    thing.paint(thing.ellipse(0, 0.1, 0.25, 0.25), _BLACK)
    thing.paint(thing.ellipse(0, 0.1, 0.17, 0.17), colour, 1.1)
    thing.paint(thing.ellipse(-0.05, 0.05, 0.06, 0.06), _WHITE)


def _starship(thing: Sprite, colour: Colour, steel: Array) -> None:
    thing.shine(-0.85, 0.05, 0.42, colour, 1.0)
    thing.paint(thing.ellipse(-0.82, 0.05, 0.24, 0.13), colour, 1.2)
    thing.paint(thing.outline([(-0.75, -0.75), (-0.4, -0.75), (0.3, -0.05), (-0.6, 0.05)]), _STEEL, 0.7 * steel)
    thing.paint(thing.outline([(1.1, 0.08), (0.2, -0.24), (-0.8, -0.26), (-0.8, 0.3), (0.2, 0.32)]), _STEEL, steel)
    thing.paint(thing.outline([(0.1, 0.2), (-0.5, 0.78), (-0.85, 0.78), (-0.65, 0.18)]), _STEEL, 0.55 * steel)
    thing.paint(thing.ellipse(0.36, -0.05, 0.24, 0.1), colour, 1.1)
    thing.paint(thing.box(-0.75, 0.06, 0.1, 0.13), colour, 0.9)


def _robot(thing: Sprite, colour: Colour, steel: Array) -> None:
    thing.paint(thing.box(-0.04, -1.1, 0.04, -0.7), _STEEL, steel)
    thing.paint(thing.ellipse(0, -1.02, 0.11, 0.11), colour, 1.2)
    thing.paint(thing.box(-0.95, -0.2, -0.66, 0.35) | thing.box(0.66, -0.2, 0.95, 0.35), _STEEL, 0.6 * steel)
    thing.paint(thing.box(-0.76, -0.74, 0.76, 0.82), _STEEL, steel)
    thing.paint(thing.box(-0.6, -0.46, 0.6, 0.08), _BLACK)
    for x in (-0.3, 0.3):
        thing.paint(thing.ellipse(x, -0.19, 0.19, 0.17), colour, 1.15)
        thing.shine(x, -0.19, 0.34, colour, 0.5)
    for x in (-0.4, -0.2, 0.0, 0.2, 0.4):
        thing.paint(thing.box(x - 0.06, 0.36, x + 0.06, 0.62), _BLACK)


def _orb(thing: Sprite, colour: Colour, steel: Array) -> None:
    r = np.hypot(thing.u, thing.v)
    thing.shine(0, 0, 0.85, colour, 0.9)
    thing.paint(r < 0.62, colour, np.clip(1.5 - 1.4 * r, 0.4, 1.5).astype(np.float32))
    thing.paint(r < 0.26, _WHITE)
    halo = np.abs(np.hypot(thing.u, thing.v / 0.3) - 1.02) < 0.09
    thing.paint(halo & ((thing.v > 0) | (r > 0.62)), _STEEL, steel)


def _gate(thing: Sprite, colour: Colour, steel: Array) -> None:
    corners = [(math.cos(math.pi / 3 * i), math.sin(math.pi / 3 * i)) for i in range(6)]
    outer, middle, inner = (thing.outline([(r * x, r * y) for x, y in corners]) for r in (1.1, 0.88, 0.72))
    thing.paint(outer & ~inner, _STEEL, steel)
    thing.paint(middle & ~inner, colour, 1.1)
    for x, y in corners:
        thing.paint(thing.ellipse(0.98 * x, 0.98 * y, 0.13, 0.13), colour, 1.2)
    thing.shine(0, 0, 0.75, colour, 0.35)


def _satellite(thing: Sprite, colour: Colour, steel: Array) -> None:
    for side in (-1, 1):
        panel = thing.box(min(side * 0.36, side * 1.08), -0.36, max(side * 0.36, side * 1.08), 0.36)
        cells = (np.sin(18 * thing.u) > -0.75) & (np.sin(18 * thing.v + 1.5) > -0.75)
        thing.paint(panel, _BLACK)
        thing.paint(panel & cells, colour, 0.8 + 0.3 * thing.u)
    thing.paint(thing.box(-1, -0.05, 1, 0.05), _STEEL, steel)
    thing.paint(thing.box(-0.3, -0.46, 0.3, 0.46), _STEEL, steel)
    thing.paint(thing.ellipse(0, -0.62, 0.42, 0.2), _STEEL, 1.1 * steel)
    thing.paint(thing.ellipse(0, 0.1, 0.13, 0.13), colour, 1.2)
    thing.shine(0, 0.1, 0.3, colour, 0.6)


# --- light and screen ----------------------------------------------------------------------------------------


def _light(shot: Shot, t: float, x: Array, y: Array) -> Array:
    """Neon: steady, pulsing between two colours, failing now and then, or a scanner's bar that crosses the view."""
    base = (1.08 - 0.7 * (x * x + y * y))[..., None]
    match shot.light:
        case "pulse":
            wave = math.sin(2 * math.pi * (t / 0.9 + shot.phase))
            return (base * (0.95 + wave * np.array([0.3, -0.08, -0.28], np.float32))).astype(np.float32)
        case "flicker":
            fails = np.random.default_rng([shot.texture_seed, 3]).random(997)[int(8 * t) % 997] > 0.7
            return (base * (0.5 if fails else 1.05)).astype(np.float32)
        case "sweep":
            place = 1.5 * ((t / 1.8 + shot.phase) % 1) - 0.75
            bar = glow(x - place, 0.09)[..., None]
            return (base * (0.82 + bar * np.array([0.6, 1.3, 1.4], np.float32))).astype(np.float32)
    return base.astype(np.float32)


def _finish(frames_THWC: NDArray[np.uint8], seed: int, fps: float) -> NDArray[np.uint8]:
    """Cold shadows, contrast, bloom, colours that part towards the sides, scan lines and a band that runs down."""
    out = np.empty_like(frames_THWC)
    height, width = frames_THWC.shape[1:3]
    period = max(3, round(height / 48))
    lines = (1 - _SCAN * (np.arange(height) % period == 0)).astype(np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)
    begin = np.random.default_rng([seed, 4]).random()
    for i, frame in enumerate(frames_THWC):
        rgb = _parted(frame, width).astype(np.float32) / 255
        luma = (rgb @ _LUMA)[..., None]
        vivid = luma + 1.25 * (rgb - luma)
        vivid = (1 - _CAST) * vivid + _CAST * luma * _COLD
        crisp = vivid + 0.35 * (vivid * np.abs(vivid) * (3 - 2 * vivid) - vivid)
        cold = crisp + (1 - luma) * _SHADOWS
        shining = cv2.GaussianBlur(np.clip(cold - 0.45, 0, 1), (0, 0), height / 22)
        place = 1.3 * ((i / fps / _BAND_S + begin) % 1) - 0.15
        band = 1 + 0.16 * glow(down - place, 0.06)
        out[i] = np.round(np.clip((cold + _BLOOM * shining) * (lines * band)[:, None, None], 0, 1) * 255)
    return out


def _parted(frame: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Red enlarged and blue shrunk by less than a hundredth: their edges part away from the middle."""
    height = len(frame)
    channels = []
    for channel, scale in zip(cv2.split(frame), (1.006, 1.0, 0.994), strict=True):
        matrix = np.array([[scale, 0, (1 - scale) * width / 2], [0, scale, (1 - scale) * height / 2]])
        moved = cv2.warpAffine(channel, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        channels.append(channel if scale == 1.0 else moved)
    return np.dstack(channels)


SCI_FI = Look(texture=_texture, sprite=_sprite, light=_light, finish=_finish, lens=_LENS)
