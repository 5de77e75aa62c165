"""Pictures inside a page: frames as JPEG data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from cinesynth.pictures import Frames

_QUALITY = 86


def data_uri(jpeg: bytes) -> str:
    """JPEG bytes as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def strip_places(frames: int, count: int) -> list[int]:
    """Places of at most `count` frames, spread evenly from the first to the last."""
    return [int(place) for place in np.linspace(0, frames - 1, min(count, frames)).round()]


def strip(frames_THWC: Frames, count: int = 6, height: int = 160) -> list[str]:
    """Evenly spread frames as data URIs, brought to `height` pixels; small ones are enlarged smoothly.

    Args:
        frames_THWC: uint8 RGB.
        count: how many frames.
        height: of each picture in pixels.
    """
    return [_jpeg(frames_THWC[place], height) for place in strip_places(len(frames_THWC), count)]


def _jpeg(frame_HWC: Frames, height: int) -> str:
    size = (round(frame_HWC.shape[1] * height / frame_HWC.shape[0]), height)
    image = Image.fromarray(np.ascontiguousarray(frame_HWC)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return data_uri(buffer.getvalue())
