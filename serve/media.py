"""First frames from strangers: bounded and sniffed here, then measured, decoded and stripped in a watched child.

Only the bytes are trusted, never a file name or a declared type. Links are not followed.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
import uuid
from pathlib import Path

from cinesynth.data.scan.watch import watched
from cinesynth.errors import AttemptFailed, MediaError
from cinesynth.pictures import PictureLimits, is_webp
from cinesynth.storage import replace_synced
from serve import decode
from serve.config import ImageLimits
from serve.request_id import request_log

logger = request_log(__name__)

_decoding = threading.Lock()
"""Of the child: it decodes one image at a time, as each takes megabytes."""


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
    if is_webp(data):
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


def frame_png(data: bytes, limits: ImageLimits, height: int, width: int) -> bytes:
    """One still image as `read_picture` sees it, cropped and resized as the generator would: a lossless PNG.

    It is decoded in a child process that is ended when it takes longer than `limits.decode_s`.

    Raises ImageRefused for another format, too many bytes or pixels, several frames, damage, and for what takes too
    much time or memory.
    """
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(limits)
    kind = sniff(data)
    if kind is None:
        raise ImageRefused("not a JPEG, PNG or WebP image")
    bounds = PictureLimits(limits.max_bytes, limits.max_side, limits.max_pixels)
    try:
        with _decoding:
            child = watched(limits.decode_s, decode.__name__)
            return child.call("the image", decode.frame_png, data, kind, bounds, height, width, limits.decode_bytes)
    except MediaError as e:
        raise ImageRefused(str(e)) from e
    except AttemptFailed as e:
        logger.warning("%s", e)
        told = f"it cannot be decoded within {limits.decode_s:g} s and {limits.decode_bytes:,} bytes of memory"
        raise ImageRefused(f"{told}; save it anew as a smaller JPEG") from e


def write_whole(data: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all, and survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        replace_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _too_many_bytes(limits: ImageLimits) -> ImageRefused:
    return ImageRefused(f"the image is larger than {limits.max_bytes:,} bytes", too_large=True)
