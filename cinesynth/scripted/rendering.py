"""Draw one shot of a screenplay: a shaded object moving over a textured world under a moving camera.

The world is measured in view heights with its origin in the middle of the view; x to the right, y down. Texture
and object are drawn once, oversampled, and warped into each frame, so motion is smooth to a fraction of a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.film_look import film_look
from cinesynth.scripted.photographs import PHOTOGRAPHS, load_photograph
from cinesynth.scripted.screenplay import COLOURS, Shot

Array = NDArray[np.float32]

_WORLD = (2.0, 1.5)  # half width and half height of the texture; it is mirrored beyond
_TEXTURE_DENSITY = 1.2  # texture pixels per view pixel at zoom 1
PAN_SPEED, ZOOM_SPEED, ROLL_SPEED = 0.2, 0.2, math.radians(12)  # per second
_SLOW = 0.6  # speed of the film look's push-in, as a share of ZOOM_SPEED
_GRAVITY, _ORBIT_S, _SWING_S, _SPIN_S = 3.5, 3.4, 2.6, 3.2
_LIGHT_RATE, _PULSE_S = 0.6, 1.0  # decay or growth per second; seconds from pulse to pulse
_DIMMED = {  # what each of the screenplay's `PULSES` takes from red, green and blue
    "pulse": (0.75, 0.75, 0.75),
    "golden": (0.0, 0.3, 0.8),
    "blue": (0.8, 0.45, 0.0),
    "red": (0.0, 0.75, 0.65),
}
SOFT_LENS, SHARP_LENS = 1 / 24, 1 / 64  # deviation of the lens's blur, in view heights
_SPRITE_REACH = 1.2  # half side of the sprite, in object radii


@dataclass(frozen=True)
class View:
    """The camera at one moment: centre (x, y), zoom and roll in radians."""

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0
    roll: float = 0.0

    def matrix(self, height: int, width: int) -> NDArray[np.float64]:
        """3x3 map from world to pixel coordinates."""
        scale, cos, sin = self.zoom * height, math.cos(self.roll), math.sin(self.roll)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        moved = np.array([[1, 0, -self.x], [0, 1, -self.y], [0, 0, 1]])
        shown = np.array([[scale, 0, (width - 1) / 2], [0, scale, (height - 1) / 2], [0, 0, 1]])
        return shown @ turn @ moved


def camera_at(shot: Shot, t: float) -> View:
    """Where the camera is `t` seconds into the shot; at mid-shot it is at the origin."""
    u = t - shot.duration / 2
    match shot.camera.split():
        case ["pan", way]:
            return View(x=PAN_SPEED * u * (1 if way == "right" else -1))
        case ["tilt", way]:
            return View(y=PAN_SPEED * u * (1 if way == "down" else -1))
        case ["slow", "push", "in"]:
            return View(zoom=math.exp(_SLOW * ZOOM_SPEED * u))
        case ["push", "in"]:
            return View(zoom=math.exp(ZOOM_SPEED * u))
        case ["pull", "out"]:
            return View(zoom=math.exp(-ZOOM_SPEED * u))
        case ["roll", way]:
            return View(roll=ROLL_SPEED * u * (1 if way == "clockwise" else -1))
    return View()


def object_at(shot: Shot, t: float) -> tuple[float, float, float]:
    """Centre (x, y) and angle of the object `t` seconds into the shot."""
    x, y = shot.place
    u = t - shot.duration / 2
    phase = 2 * math.pi * shot.phase
    match shot.motion.split():
        case ["bounce"]:
            return x, 0.42 - shot.size / 2 - _bounce_height(t, 0.62), 0.0
        case ["slide", way]:
            return 0.16 * u * (1 if way == "right" else -1), y, 0.0
        case ["rise"]:
            return x, -0.13 * u, 0.0
        case ["sink"]:
            return x, 0.13 * u, 0.0
        case ["orbit", way]:
            angle = (2 * math.pi / _ORBIT_S * t) * (1 if way == "clockwise" else -1) + phase
            return 0.26 * math.cos(angle), 0.24 * math.sin(angle), 0.0
        case ["pendulum"]:
            # Let go at one of its ends, so that the first frame shows where it swings.
            angle = 0.55 * math.cos(2 * math.pi / _SWING_S * t) * (1 if shot.phase < 0.5 else -1)
            px, py = _pivot(shot)
            return px + 0.72 * math.sin(angle), py + 0.72 * math.cos(angle), -angle
        case ["spin"]:
            return x, y, 2 * math.pi / _SPIN_S * t + phase
    return x, y, 0.0


def render_shot(
    shot: Shot, frames: int, fps: float, height: int, width: int, lens: float = SOFT_LENS
) -> NDArray[np.uint8]:
    """The first frames of the shot, as uint8 RGB [frames, height, width, 3]; `lens` is the blur in view heights."""
    texture = _texture(shot, height)
    zoom = max(camera_at(shot, t).zoom for t in (0.0, frames / fps))
    sprite = _sprite(shot, math.ceil(1.1 * _SPRITE_REACH * shot.size * height * zoom)) if shot.shape else None
    out = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        t = i / fps
        view = camera_at(shot, t).matrix(height, width)
        canvas = _warp(texture, view @ _texture_to_world(texture), height, width, cv2.BORDER_REFLECT_101)
        if sprite is not None:
            _draw_object(canvas, sprite, shot, t, view)
        canvas *= light_gain(shot, t, height, width)
        canvas = cv2.GaussianBlur(canvas, (0, 0), lens * height)  # type: ignore[assignment]
        cv2.convertScaleAbs(canvas, dst=out[i])  # rounds and saturates
    return film_look(out, shot.texture_seed) if shot.film_look else out


def _draw_object(canvas: Array, sprite: Array, shot: Shot, t: float, view: NDArray[np.float64]) -> None:
    height, width = canvas.shape[:2]
    x, y, angle = object_at(shot, t)
    if shot.motion == "pendulum":
        # The rod ends at the object's rim: a ring would show it inside.
        rim = x + 0.4 * shot.size * math.sin(angle), y - 0.4 * shot.size * math.cos(angle)
        ends = [view @ (*point, 1) for point in (_pivot(shot), rim)]
        rod = np.zeros((height, width), np.uint8)
        (x0, y0), (x1, y1) = [(round(float(p[0]) * 16), round(float(p[1]) * 16)) for p in ends]
        cv2.line(rod, (x0, y0), (x1, y1), 255, max(1, height // 64), cv2.LINE_AA, shift=4)
        canvas *= 1 - (rod.astype(np.float32) / 255 * 0.75)[..., None]
    matrix = view @ _sprite_to_world(sprite, shot.size, x, y, angle)
    drawn = _warp(sprite, matrix, height, width, cv2.BORDER_CONSTANT)
    cast = view @ _sprite_to_world(sprite, shot.size, x + 0.03, y + 0.05, angle)
    shadow = _warp(sprite[..., 3], cast, height, width, cv2.BORDER_CONSTANT)
    softened = cv2.GaussianBlur(shadow, (0, 0), height / 40)
    canvas *= (1 - 0.45 * softened)[..., None]
    canvas *= 1 - drawn[..., 3:]
    canvas += drawn[..., :3]


def _warp(image: Array, matrix: NDArray[np.float64], height: int, width: int, border: int) -> Array:
    return cv2.warpAffine(image, matrix[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=border)  # type: ignore[return-value]


def _texture_to_world(texture: Array) -> NDArray[np.float64]:
    rows, columns = texture.shape[:2]
    half_width, half_height = _WORLD
    x, y = 2 * half_width / (columns - 1), 2 * half_height / (rows - 1)
    return np.array([[x, 0, -half_width], [0, y, -half_height], [0, 0, 1]])


def _sprite_to_world(sprite: Array, size: float, x: float, y: float, angle: float) -> NDArray[np.float64]:
    step = _SPRITE_REACH * size / (len(sprite) - 1)
    cos, sin, half = math.cos(angle), math.sin(angle), _SPRITE_REACH * size / 2
    turn = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
    return turn @ np.array([[step, 0, -half], [0, step, -half], [0, 0, 1]])


def _pivot(shot: Shot) -> tuple[float, float]:
    return shot.place[0] / 2, -0.62


def _bounce_height(t: float, drop: float, gravity: float = _GRAVITY, restitution: float = 0.93) -> float:
    """Height above the floor `t` seconds after being dropped from `drop`."""
    fall = math.sqrt(2 * drop / gravity)
    if t < fall:
        return drop - gravity * t * t / 2
    t -= fall
    speed = gravity * fall * restitution
    while t > (airtime := 2 * speed / gravity):
        t -= airtime
        speed *= restitution
    return speed * t - gravity * t * t / 2


def light_gain(shot: Shot, t: float, height: int, width: int) -> Array:
    """The factors by which light changes the picture `t` seconds into the shot, [height, width, 1 or 3].

    They include a vignette.
    """
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    gain = (1.05 - 0.45 * (x * x + y * y))[..., None]
    pulse = 0.5 - 0.5 * math.cos(2 * math.pi * t / _PULSE_S)  # 0 at the start
    match shot.light:
        case "fade":
            return gain * np.float32(1.1 * math.exp(-_LIGHT_RATE * t))
        case "brighten":
            return gain * np.float32(min(0.3 * math.exp(_LIGHT_RATE * t), 1.15))
        case light if light in _DIMMED:
            return gain * (1.05 - pulse * np.array(_DIMMED[light], np.float32))
    return gain


# --- textures and sprites ------------------------------------------------------------------------------------


def _texture(shot: Shot, height: int) -> Array:
    """RGB float32 (0..255) texture of the whole world."""
    density = _TEXTURE_DENSITY * height
    half_width, half_height = _WORLD
    rows, columns = round(2 * half_height * density), round(2 * half_width * density)
    if shot.texture in PHOTOGRAPHS:
        return _photograph(shot, rows, columns)
    y, x = np.mgrid[-half_height : half_height : rows * 1j, -half_width : half_width : columns * 1j].astype(np.float32)
    noise = _noise(np.random.default_rng(shot.texture_seed), rows, columns)
    mix, shade = _pattern(shot, x, y, noise)
    a, b = (np.array(COLOURS[c], np.float32) * 0.75 + 28 for c in shot.texture_colours)
    colours = (b + (a - b) * mix[..., None]) * (shade * (0.92 + 0.16 * noise))[..., None]
    return colours.astype(np.float32)


def _photograph(shot: Shot, rows: int, columns: int) -> Array:
    """A part of the photograph, stretched over the whole world. The seed decides the part, mirroring and brightness."""
    rng = np.random.default_rng(shot.texture_seed)
    picture = load_photograph(shot.texture)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    height, width = picture.shape[:2]
    largest = min(height / rows, width / columns)
    side = largest * rng.uniform(0.6, 1.0)
    crop_rows, crop_columns = round(rows * side), round(columns * side)
    top, left = rng.integers(height - crop_rows + 1), rng.integers(width - crop_columns + 1)
    crop = picture[top : top + crop_rows, left : left + crop_columns].astype(np.float32)
    small = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_AREA if side > 1 else cv2.INTER_CUBIC)
    gain = rng.uniform(0.85, 1.1) * rng.uniform(0.94, 1.06, 3)
    # Softened to what a frame can hold: finer detail would only shimmer as it moves.
    soft = cv2.GaussianBlur(small, (0, 0), rows / 180)
    return np.clip(soft * gain.astype(np.float32), 0, 255)


def _pattern(shot: Shot, x: Array, y: Array, noise: Array) -> tuple[Array, Array]:
    """The share of the first colour at each place (0..1), and a brightness factor."""
    angle = shot.texture_angle
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    k = np.float32(math.pi / 0.5 * shot.texture_scale)
    flat = np.ones_like(x)
    match shot.texture:
        case "gradient":
            return _step(along * 0.9 + (noise - 0.5) * 0.5, 1.0), flat
        case "clouds":
            return _step(noise - 0.5, 0.22), flat
        case "checker":
            return _step(np.sin(k * along) * np.sin(k * across), 0.16), flat
        case "stripes":
            return _step(np.sin(k * along + noise), 0.3), flat
        case "dots":
            return _step(np.cos(k * along) * np.cos(k * across) - 0.35, 0.12), flat
        case "ripples":
            return _step(np.sin(k * np.hypot(x - 0.3, y + 0.2)), 0.4), flat
    hills, shade = np.zeros_like(x), flat.copy()
    for layer in range(3):
        wave = np.sin(x * (2.1 + 1.7 * layer) * shot.texture_scale + shot.phase * 9 + 2 * layer)
        inside = _step(y - (0.02 + 0.24 * layer + (0.12 - 0.02 * layer) * wave), 0.02)
        hills = np.maximum(hills, inside)
        shade = shade * (1 - inside) + (1.1 - 0.2 * layer) * inside
    return hills, shade + (1 - hills) * 0.2 * (y + 0.3)


def _step(value: NDArray[Any], softness: float) -> Array:
    return (0.5 + 0.5 * np.tanh(value / np.float32(softness))).astype(np.float32)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Smooth noise with mean about 0.5: octaves of coarse random grids, enlarged."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(4):
        grid = rng.random((5 * 2**octave, 7 * 2**octave), np.float32)
        total += cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC) / np.float32(2**octave)
    return total / np.float32(1.875)


def _sprite(shot: Shot, side: int) -> Array:
    """The object as premultiplied RGBA float32 [side, side, 4]: colour 0..255, alpha 0..1."""
    fine = 4 * side
    v, u = np.mgrid[-1 : 1 : fine * 1j, -1 : 1 : fine * 1j].astype(np.float32) * np.float32(_SPRITE_REACH)
    r = np.hypot(u, v)
    if shot.shape == "ball":
        mask = r < 1
        light = 0.5 + 0.6 * np.clip(1 - np.hypot(u + 0.35, v + 0.4) / 1.5, 0, 1)
        light += 0.35 * np.exp(-((u + 0.4) ** 2 + (v + 0.45) ** 2) / 0.05)
    else:
        mask = np.abs(r - 0.76) < 0.22 if shot.shape == "ring" else _polygon(shot.shape or "square", fine)
        light = 1.0 - 0.16 * v - 0.08 * u
    rgb = np.array(COLOURS[shot.colour], np.float32) * light[..., None]
    rgba = np.dstack([np.clip(rgb, 0, 255) * mask[..., None], mask]).astype(np.float32)
    return cv2.resize(rgba, (side, side), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _polygon(shape: str, fine: int) -> NDArray[np.bool_]:
    if shape == "star":
        angles = -math.pi / 2 + math.pi / 5 * np.arange(10)
        radii = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
    else:
        corners = 3 if shape == "triangle" else 4
        angles = (-math.pi / 2 if corners == 3 else -math.pi / 4) + 2 * math.pi / corners * np.arange(corners)
        radii = np.full(corners, 1.1)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1)
    pixels = np.round((points / _SPRITE_REACH + 1) / 2 * (fine - 1)).astype(np.int32)
    mask = np.zeros((fine, fine), np.uint8)
    cv2.fillPoly(mask, [pixels], 1)
    return mask.astype(bool)
