"""What the decoding child of `serve.media` runs. It imports little, as the child starts with it."""

from __future__ import annotations

import io
import re
import resource
import sys
from collections.abc import Callable

from PIL import Image

from cinesynth.errors import MediaError
from cinesynth.pictures import PictureLimits, crop_to, read_picture

MAX_SCANS = 64
"""Of a JPEG. Each one is gone through for the whole picture, and may take no more than a few bytes; files have ten."""
MAX_SEGMENTS = 4096
"""Of a JPEG: metadata of 20 MB have some hundreds."""

_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""In compressed data 0xff is followed by 0, or is a restart, or begins a segment (ITU-T T.81, B.1)."""


def frame_png(
    beat: Callable[[], None], data: bytes, kind: str, limits: PictureLimits, height: int, width: int, memory: int
) -> bytes:
    """One still image, cropped and resized to [height, width], as a lossless PNG.

    Args:
        beat: not called: the whole of it has to fit into the time limit.
        data: encoded image.
        kind: Pillow's name of its format; no other is tried.
        limits: on its size.
        height, width: of the frame, pixels.
        memory: bytes that may be taken beyond what the child has.

    Raises MediaError as `read_picture` does, for a JPEG that is more work than a picture, and where the memory does not
    suffice.
    """
    if kind == "JPEG":
        check_scans(data)
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # others do not heed it
        most = _taken() + memory if before[1] == resource.RLIM_INFINITY else min(_taken() + memory, before[1])
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        frame = crop_to(read_picture(data, limits, formats=(kind,)), height, width)
        png = io.BytesIO()
        Image.fromarray(frame).save(png, "PNG", compress_level=1)
        return png.getvalue()
    except MemoryError as e:
        raise MediaError(f"the image takes more than {memory:,} bytes of memory while it is decoded") from e
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_scans(data: bytes) -> None:
    """Raise MediaError for a JPEG with more scans or segments than pictures have."""
    at = scans = 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        marker = found[1][0] if found else 0xD9
        if found is None or marker == 0xD9:  # the end of the image; what follows is not decoded
            return
        at = found.end()
        if marker in (0x01, 0xD8):  # these stand alone
            continue
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise MediaError(f"the image is a JPEG of more than {MAX_SCANS} scans; save it anew")
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise MediaError(f"the image is a JPEG of more than {MAX_SEGMENTS} segments; save it anew")


def _taken() -> int:
    """Bytes of address space that this process has."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()
