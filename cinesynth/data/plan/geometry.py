"""From stored pixels to a bucket's: the size that a picture is brought to, the part that is kept, and the resize.

A box is (left, top, width, height) in stored pixels of the upright picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from cinesynth.data.config import Size
from cinesynth.data.records import Box
from cinesynth.pictures import Frames


def choose_size(picture: Box, pixel_aspect: Fraction, sizes: Sequence[Size], max_upscale: float) -> Size | None:
    """The size that cuts least off the picture, the largest of equals; None where all need too much enlargement.

    Args:
        picture: what is to be shown.
        pixel_aspect: of the stored pixels.
        sizes: to choose from.
        max_upscale: most that a stored row may be enlarged, as a factor.
    """
    width, height = picture[2] * float(pixel_aspect), picture[3]

    def fits(size: Size) -> bool:
        return max(size[0] / width, size[1] / height) <= max_upscale * (1 + 1e-9)

    def kept(size: Size) -> float:
        ratio = (size[0] / size[1]) / (width / height)
        return round(min(ratio, 1 / ratio), 2)

    return max((s for s in sizes if fits(s)), key=lambda s: (kept(s), s[0] * s[1]), default=None)


def crop_box(picture: Box, pixel_aspect: Fraction, size: Size, centre: tuple[float, float] = (0.5, 0.5)) -> Box:
    """The largest box of the size's aspect (as shown) inside the picture; `centre` says where: (0, 0) is top left."""
    left, top, columns, rows = picture
    aspect = float(pixel_aspect)
    scale = min(columns * aspect / size[0], rows / size[1])
    width, height = size[0] * scale / aspect, size[1] * scale
    x, y = left + (columns - width) * centre[0], top + (rows - height) * centre[1]
    return round(x, 3), round(y, 3), round(width, 3), round(height, 3)


def resize(frames_THWC: Frames, size: Size, box: Box) -> Frames:
    """The part of the frames in `box`, brought to `size` (Lanczos): uint8 [T, height, width, 3].

    The same filter as the one that brings a user's first frame to size. What lies outside, such as a black bar, does
    not bleed in.
    """
    left, top, width, height = box
    x0, y0, x1, y1 = math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height)
    inside = frames_THWC[:, max(0, y0) : y1, max(0, x0) : x1]
    rows, columns = inside.shape[1:3]
    left, top = max(0.0, left - x0), max(0.0, top - y0)
    edges = (left, top, min(float(columns), left + width), min(float(rows), top + height))
    resized = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box=edges)) for frame in inside]
    return np.stack(resized)


def crop_resize(frames_THWC: Frames, height: int, width: int, pixel_aspect: Fraction = Fraction(1)) -> Frames:
    """Centre-crop whole frames to the target's aspect, as shown, then resize: uint8 [T, height, width, 3]."""
    rows, columns = frames_THWC.shape[1:3]
    box = crop_box((0.0, 0.0, float(columns), float(rows)), pixel_aspect, (width, height))
    return resize(frames_THWC, (width, height), box)
