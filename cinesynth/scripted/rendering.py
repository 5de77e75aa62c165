"""Draw one shot of a screenplay: a shaded object moving over a textured world under a moving camera.

The world is measured in view heights with its origin in the middle of the view; x to the right, y down. Texture
and object are drawn once, oversampled, and warped into each frame, so motion is smooth to a fraction of a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cinesynth.scripted.looks import LOOKS
from cinesynth.scripted.painting import SPRITE_REACH, Array, smooth_noise
from cinesynth.scripted.photographs import PHOTOGRAPHS, load_photograph
from cinesynth.scripted.screenplay import LONGEST_S, Shot

_WORLD = (2.0, 1.5)  # half width and half height of the texture; it is mirrored beyond
_TEXTURE_DENSITY = 1.2  # texture pixels per view pixel at zoom 1
PAN_SPEED, ZOOM_SPEED, ROLL_SPEED = 0.2, 0.2, math.radians(12)  # per second, of the plain world
_SLOW = 0.6  # speed of the film look's push-in, as a share of ZOOM_SPEED
_SLIDE_SPEED, _DRIFT_SPEED = 0.16, 0.13  # of things, to a side and up or down
_GRAVITY, _ORBIT_S, _SWING_S, _SPIN_S, _HOVER_S = 3.5, 3.4, 2.6, 3.2, 1.9


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
    pan, zoom, roll = (_speed(shot, base) for base in (PAN_SPEED, ZOOM_SPEED, ROLL_SPEED))
    match shot.camera.split():
        case ["pan", way]:
            return View(x=pan * u * (1 if way == "right" else -1))
        case ["tilt", way]:
            return View(y=pan * u * (1 if way == "down" else -1))
        case ["slow", "push", "in"]:
            return View(zoom=math.exp(_speed(shot, _SLOW * ZOOM_SPEED) * u))
        case ["push", "in"]:
            return View(zoom=math.exp(zoom * u))
        case ["pull", "out"]:
            return View(zoom=math.exp(-zoom * u))
        case ["roll", way]:
            return View(roll=roll * u * (1 if way == "clockwise" else -1))
    return View()


def _speed(shot: Shot, base: float) -> float:
    """A speed at the look's pace. A long shot goes as far as one of five seconds, and takes its whole length for it."""
    return base * shot.words.pace * min(1.0, LONGEST_S / shot.duration)


def object_at(shot: Shot, t: float) -> tuple[float, float, float]:
    """Centre (x, y) and angle of the object `t` seconds into the shot."""
    x, y, angle = _moved(shot, t)
    if not shot.words.follows:
        return x, y, angle
    view = camera_at(shot, t)
    return x + view.x, y + view.y, angle


def _moved(shot: Shot, t: float) -> tuple[float, float, float]:
    """Where the motion alone brings the object."""
    x, y = shot.place
    u = t - shot.duration / 2
    phase = 2 * math.pi * shot.phase
    match shot.motion.split():
        case ["bounce"]:
            return x, 0.42 - shot.size / 2 - _bounce_height(t, 0.62), 0.0
        case ["slide", way]:
            return _speed(shot, _SLIDE_SPEED) * u * (1 if way == "right" else -1), y, 0.0
        case ["rise"]:
            return x, -_speed(shot, _DRIFT_SPEED) * u, 0.0
        case ["sink"]:
            return x, _speed(shot, _DRIFT_SPEED) * u, 0.0
        case ["hover"]:
            return x, y + 0.07 * math.sin(2 * math.pi / _HOVER_S * t + phase), 0.0
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
    shot: Shot, frames: int, fps: float, height: int, width: int, lens: float | None = None
) -> NDArray[np.uint8]:
    """The first frames of the shot, as uint8 RGB [frames, height, width, 3].

    Args:
        shot: of a screenplay.
        frames: how many, at `fps` a second.
        fps: frames per second.
        height, width: of the frames.
        lens: deviation of the blur in view heights; None: the look's own.
    """
    look = LOOKS[shot.look]
    lens = look.lens if lens is None else lens
    texture = _texture(shot, height)
    zoom = max(camera_at(shot, t).zoom for t in (0.0, frames / fps))
    sprite = _sprite(shot, math.ceil(1.1 * SPRITE_REACH * shot.size * height * zoom)) if shot.shape else None
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
    return look.finish(out, shot.texture_seed, fps) if look.finish else out


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
    step = SPRITE_REACH * size / (len(sprite) - 1)
    cos, sin, half = math.cos(angle), math.sin(angle), SPRITE_REACH * size / 2
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
    """The factors by which light changes the picture `t` seconds into the shot, [height, width, 1 or 3]."""
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    return LOOKS[shot.look].light(shot, t, x, y)


def _texture(shot: Shot, height: int) -> Array:
    """RGB float32 (0..255) texture of the whole world."""
    density = _TEXTURE_DENSITY * height
    half_width, half_height = _WORLD
    rows, columns = round(2 * half_height * density), round(2 * half_width * density)
    if shot.texture in PHOTOGRAPHS:
        return _photograph(shot, rows, columns)
    y, x = np.mgrid[-half_height : half_height : rows * 1j, -half_width : half_width : columns * 1j].astype(np.float32)
    noise = smooth_noise(np.random.default_rng(shot.texture_seed), rows, columns)
    return LOOKS[shot.look].texture(shot, x, y, noise)


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


def _sprite(shot: Shot, side: int) -> Array:
    """The object as premultiplied RGBA float32 [side, side, 4]: colour 0..255, alpha 0..1."""
    fine = 4 * side
    v, u = np.mgrid[-1 : 1 : fine * 1j, -1 : 1 : fine * 1j].astype(np.float32) * np.float32(SPRITE_REACH)
    rgba = LOOKS[shot.look].sprite(shot, u, v)
    return cv2.resize(rgba, (side, side), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
