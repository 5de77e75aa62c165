"""The plain world: drawn patterns, a ball or a flat shape, and a light that fades, grows or pulses."""

from __future__ import annotations

import math

import numpy as np

from cinesynth.scripted.look import Look
from cinesynth.scripted.painting import Array, Mask, polygon, soft_step
from cinesynth.scripted.screenplay import Shot
from cinesynth.scripted.vocabulary import COLOURS

_LIGHT_RATE, _PULSE_S = 0.6, 1.0  # decay or growth per second; seconds from pulse to pulse
_DIMMED = {  # what each of the vocabulary's `PULSES` takes from red, green and blue
    "pulse": (0.75, 0.75, 0.75),
    "golden": (0.0, 0.3, 0.8),
    "blue": (0.8, 0.45, 0.0),
    "red": (0.0, 0.75, 0.65),
}


def _light(shot: Shot, t: float, x: Array, y: Array) -> Array:
    """With a vignette. A pulse is over where it began."""
    gain: Array = (1.05 - 0.45 * (x * x + y * y)).astype(np.float32)[..., None]
    pulse = 0.5 - 0.5 * math.cos(2 * math.pi * t / _PULSE_S)  # 0 at the start
    match shot.light:
        case "fade":
            return gain * np.float32(1.1 * math.exp(-_LIGHT_RATE * t))
        case "brighten":
            return gain * np.float32(min(0.3 * math.exp(_LIGHT_RATE * t), 1.15))
        case light if light in _DIMMED:
            return gain * (1.05 - pulse * np.array(_DIMMED[light], np.float32))
    return gain


def _texture(shot: Shot, x: Array, y: Array, noise: Array) -> Array:
    mix, shade = _pattern(shot, x, y, noise)
    a, b = (np.array(COLOURS[c], np.float32) * 0.75 + 28 for c in shot.texture_colours)
    colours = (b + (a - b) * mix[..., None]) * (shade * (0.92 + 0.16 * noise))[..., None]
    return colours.astype(np.float32)


def _pattern(shot: Shot, x: Array, y: Array, noise: Array) -> tuple[Array, Array]:
    """The share of the first colour at each place (0..1), and a brightness factor."""
    angle = shot.texture_angle
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    k = np.float32(math.pi / 0.5 * shot.texture_scale)
    flat = np.ones_like(x)
    match shot.texture:
        case "gradient":
            return soft_step(along * 0.9 + (noise - 0.5) * 0.5, 1.0), flat
        case "clouds":
            return soft_step(noise - 0.5, 0.22), flat
        case "checker":
            return soft_step(np.sin(k * along) * np.sin(k * across), 0.16), flat
        case "stripes":
            return soft_step(np.sin(k * along + noise), 0.3), flat
        case "dots":
            return soft_step(np.cos(k * along) * np.cos(k * across) - 0.35, 0.12), flat
        case "ripples":
            return soft_step(np.sin(k * np.hypot(x - 0.3, y + 0.2)), 0.4), flat
    hills, shade = np.zeros_like(x), flat.copy()
    for layer in range(3):
        wave = np.sin(x * (2.1 + 1.7 * layer) * shot.texture_scale + shot.phase * 9 + 2 * layer)
        inside = soft_step(y - (0.02 + 0.24 * layer + (0.12 - 0.02 * layer) * wave), 0.02)
        hills = np.maximum(hills, inside)
        shade = shade * (1 - inside) + (1.1 - 0.2 * layer) * inside
    return hills, shade + (1 - hills) * 0.2 * (y + 0.3)


def _sprite(shot: Shot, u: Array, v: Array) -> Array:
    r = np.hypot(u, v)
    if shot.shape == "ball":
        mask = r < 1
        light = 0.5 + 0.6 * np.clip(1 - np.hypot(u + 0.35, v + 0.4) / 1.5, 0, 1)
        light += 0.35 * np.exp(-((u + 0.4) ** 2 + (v + 0.45) ** 2) / 0.05)
    else:
        mask = np.abs(r - 0.76) < 0.22 if shot.shape == "ring" else _polygon(shot.shape or "square", len(u))
        light = 1.0 - 0.16 * v - 0.08 * u
    rgb = np.array(COLOURS[shot.colour], np.float32) * light[..., None]
    return np.dstack([np.clip(rgb, 0, 255) * mask[..., None], mask]).astype(np.float32)


def _polygon(shape: str, side: int) -> Mask:
    if shape == "star":
        angles = -math.pi / 2 + math.pi / 5 * np.arange(10)
        radii = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
    else:
        corners = 3 if shape == "triangle" else 4
        angles = (-math.pi / 2 if corners == 3 else -math.pi / 4) + 2 * math.pi / corners * np.arange(corners)
        radii = np.full(corners, 1.1)
    return polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1), side)


PLAIN = Look(texture=_texture, sprite=_sprite, light=_light)
