"""What the decoding child of `serve.media` runs. It imports little, as the child starts with it."""

from __future__ import annotations

import io
import resource
import sys
from collections.abc import Callable

from PIL import Image

from cinesynth.errors import MediaError
from cinesynth.pictures import PictureLimits, crop_to, read_picture


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

    Raises MediaError as `read_picture` does, and where the memory does not suffice.
    """
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


def _taken() -> int:
    """Bytes of address space that this process has."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()
