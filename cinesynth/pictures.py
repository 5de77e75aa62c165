"""Pictures as arrays, and the one reader of first frames: upright, 8-bit RGB, bounded, measured before it decodes."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cinesynth.errors import MediaError

Frames = NDArray[np.uint8]
"""RGB, the colour last: one picture [H, W, 3] or a video [T, H, W, 3]."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
"""Pillow's names of what a first frame may be: still images that are decoded without another program."""

_SEVERAL_PICTURES = ("MPO", "TIFF")  # the first is the photograph; previews, gain maps and pages follow it
_DAMAGE = OSError, ValueError, ArithmeticError, LookupError, TypeError, SyntaxError, EOFError, struct.error, zlib.error


@dataclass(frozen=True)
class PictureLimits:
    """Bounds on a first frame, checked before it is decoded: a few bytes can promise any number of pixels.

    Attributes:
        max_bytes: encoded size.
        max_side: pixels.
        max_pixels: in all.
    """

    max_bytes: int = 500_000_000
    max_side: int = 32_768
    max_pixels: int = 200_000_000


def read_picture(
    source: str | os.PathLike[str] | bytes,
    limits: PictureLimits | None = None,
    formats: Sequence[str] = FORMATS,
    name: str | None = None,
) -> Image.Image:
    """One still image as a person sees it: RGB of 8 bits, turned as its EXIF says, transparency over black.

    16-bit samples are scaled to 8 bits, and float samples from [0, 1]. Metadata, profiles included, is left behind.

    Args:
        source: a file (`~` is expanded), or its bytes.
        limits: default: those of `PictureLimits`.
        formats: Pillow's names of the formats that are taken.
        name: what errors call it; default: the file's name.

    Raises MediaError, in one line, for what is missing, no picture, damaged, animated or beyond a limit, and for
    samples whose range a file does not say.
    """
    limits = limits or PictureLimits()
    if not isinstance(source, bytes):
        name = name or os.fspath(source)
        source = _file_bytes(Path(source).expanduser(), limits, name)
    name = name or "the image"
    if len(source) > limits.max_bytes:
        raise _too_many_bytes(name, limits)
    try:
        if is_webp(source):  # its decoder takes memory for the canvas as soon as the file is opened
            _check_size(*_webp_canvas(source), limits, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which our own bound is for, and of odd metadata
            image = Image.open(io.BytesIO(source), formats=_available(formats))
            _check_size(*image.size, limits, name)
            if image.format not in _SEVERAL_PICTURES and getattr(image, "n_frames", 1) > 1:
                raise MediaError(f"{name} is animated; give one frame")
            image.load()
            return _rgb(ImageOps.exif_transpose(image), name)
    except MediaError:
        raise
    except Image.DecompressionBombError as e:
        raise MediaError(f"{name} has too many pixels; at most {limits.max_pixels:,}") from e
    except UnidentifiedImageError as e:
        raise MediaError(f"{name} is damaged, or no picture of these formats: {', '.join(formats)}") from e
    except _DAMAGE as e:
        raise MediaError(f"{name} is a damaged picture: {e}") from e


def check_picture(path: str | os.PathLike[str], key: str = "", limits: PictureLimits | None = None) -> None:
    """Read a first frame once, for a driver to refuse it before anything is started.

    Raises MediaError as `read_picture` does, naming `key`, the configuration's field, before the file.
    """
    read_picture(path, limits, name=f"{key}: {os.fspath(path)}" if key else None)


def is_webp(data: bytes) -> bool:
    """Whether these are the leading bytes of a WebP image."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def png_bytes(frame_HWC: Frames) -> bytes:
    """A frame [H, W, 3] as a PNG file."""
    data = io.BytesIO()
    Image.fromarray(frame_HWC).save(data, "PNG")
    return data.getvalue()


def crop_to(image: Image.Image, height: int, width: int) -> Frames:
    """Centre-crop to the target's aspect, then resize (Lanczos): RGB uint8 [H, W, 3].

    The same pixels go to CLIP and to the VAE, in training as in generation.
    """
    image = image.convert("RGB")
    scale = min(image.width / width, image.height / height)
    crop_width, crop_height = round(width * scale), round(height * scale)
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    cropped = image.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(cropped.resize((width, height), Image.Resampling.LANCZOS))


def _file_bytes(path: Path, limits: PictureLimits, name: str) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{name} is not a file; give a picture")
        if found.st_size > limits.max_bytes:
            raise _too_many_bytes(name, limits)
        return path.read_bytes()
    except OSError as e:
        raise MediaError(f"{name} cannot be read: {e.strerror}") from e


def _available(formats: Sequence[str]) -> list[str]:
    """Those that this build of Pillow reads."""
    Image.init()
    return [kind for kind in formats if kind in Image.OPEN]


def _too_many_bytes(name: str, limits: PictureLimits) -> MediaError:
    return MediaError(f"{name} is larger than {limits.max_bytes:,} bytes")


def _check_size(width: int, height: int, limits: PictureLimits, name: str) -> None:
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise MediaError(
            f"{name} is {width}x{height}; at most {limits.max_side} pixels a side and {limits.max_pixels:,} in all"
        )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk's header (RFC 9649, sections 2.5-2.7). Raises struct.error if cut off."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return 1 + (low_w | high_w << 16), 1 + (low_h | high_h << 16)
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        image = _scaled(image, 1.0, name)
    elif image.mode.startswith("I"):
        image = _scaled(image, 65535.0, name)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    # A fresh image: whatever metadata the file had stays behind.
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())


def _scaled(image: Image.Image, white: float, name: str) -> Image.Image:
    """Grey of 16 bits or floats as 8 bits, which `convert` would clip; a transparent grey level stays transparent."""
    samples = np.asarray(image)
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and high <= white):  # not a number fails both
        raise MediaError(
            f"{name} has samples from {low:g} to {high:g}, where 0 to {white:g} is expected; save it with 8 or 16 bits"
        )
    grey = Image.fromarray(np.rint(samples * (255.0 / white)).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8)))
    return grey
