"""First frames from strangers. Their size and format are checked before they are decoded; their metadata is dropped.

Only the bytes are trusted, never a file name or a declared type. Links are not followed.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import struct
import uuid
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cinesynth.errors import MediaError
from serve.config import ImageLimits


class ImageRefused(MediaError):
    """A first frame that is not taken. `too_large` says that its encoded size is the reason."""

    def __init__(self, message: str, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


def sniff(data: bytes) -> str | None:
    """'JPEG', 'PNG' or 'WEBP', as the leading bytes say, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def data_url_bytes(url: str, limits: ImageLimits) -> bytes:
    """The bytes that a base64 `data:` URL holds.

    Raises ImageRefused for any other URL, bad base64 or too many bytes.
    """
    if not url[:5].lower() == "data:":
        raise ImageRefused("links are not fetched; send the image as a file, or as a data: URL in base64")
    head, comma, payload = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageRefused("not a base64 data URL; write data:image/png;base64,<bytes>")
    if len(payload) * 3 // 4 > limits.max_bytes + 2:
        raise _too_many_bytes(limits)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as e:
        raise ImageRefused(f"the data URL is not valid base64: {e}") from e


def read_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode a still image to upright RGB without metadata. Transparent parts are laid over black.

    Raises ImageRefused for another format, too many bytes or pixels, several frames, or damage.
    """
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(limits)
    kind = sniff(data)
    if kind is None:
        raise ImageRefused("not a JPEG, PNG or WebP image")
    try:
        if kind == "WEBP":  # its decoder takes memory for the canvas as soon as the file is opened
            _check_size(*_webp_canvas(data), limits)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound follows
            image = Image.open(io.BytesIO(data), formats=[kind])
            _check_size(*image.size, limits)
            # Phones append a gain map or a preview to a JPEG (MPO): the first image is the photograph.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise ImageRefused("the image is animated; send one frame")
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as e:
        raise ImageRefused(f"too many pixels; at most {limits.max_pixels:,}") from e
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error, zlib.error, EOFError) as e:
        if isinstance(e, ImageRefused):
            raise
        raise ImageRefused(f"damaged {kind} image: {e}") from e
    return _rgb(upright)


def save_image(image: Image.Image, path: Path) -> None:
    """Write a lossless PNG. It appears whole or not at all, and survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as f:
            image.save(f, format="PNG", compress_level=1)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _too_many_bytes(limits: ImageLimits) -> ImageRefused:
    return ImageRefused(f"the image is larger than {limits.max_bytes:,} bytes", too_large=True)


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise ImageRefused(
            f"the image is {width}x{height}; at most {limits.max_side} pixels a side and {limits.max_pixels:,} in all"
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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    # A new image leaves the file's metadata behind.
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
