"""How a decoded frame is shown: upright, square where asked, in the colours that its file states or players assume.

The one place for it, so that a video looks the same to `prepare`, to the metrics and on pages.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

from cinesynth.errors import MediaError
from cinesynth.pictures import Frames

MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}
"""Matrix coefficients (ITU-T H.273) that a frame's tag names."""

_SD = (1280, 576)  # untagged video with a longer or a shorter side above these is taken as BT.709, as players do


def chosen_stream(container: Any, path: str) -> Any:
    """FFmpeg's best video stream, cover pictures apart, set to decode on one thread: frame threads hang after a seek.

    Raises MediaError when there is none, or FFmpeg does not know its codec.
    """
    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        raise MediaError(f"{path} has no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise MediaError(f"{path} has video in a codec that FFmpeg does not know")
    stream.codec_context.thread_count = 1
    return stream


def is_cover(stream: Any) -> bool:
    """Whether a stream is the picture on a piece of music."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def assumed_hd(frame: Any) -> bool:
    """Whether a frame without a known matrix tag is taken as BT.709, by its size."""
    sides = max(frame.width, frame.height), min(frame.width, frame.height)
    return int(frame.colorspace) not in MATRICES and (sides[0] >= _SD[0] or sides[1] > _SD[1])


def quarter_turns(frame: Any) -> int:
    """Counterclockwise quarter turns that bring the stored picture upright."""
    return round(frame.rotation / 90) % 4


def pixels(frame: Any, size: tuple[int, int] | None = None) -> Frames:
    """A frame as uint8 RGB [h, w, 3], upright.

    Args:
        frame: of PyAV.
        size: stored width and height to scale down to, before it is turned; default: as it is.
    """
    width, height = size or (frame.width, frame.height)
    small = (width, height) != (frame.width, frame.height)
    picture = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=Colorspace.ITU709 if assumed_hd(frame) else None,
        interpolation="AREA" if small else None,
        threads=1,
    )
    return np.ascontiguousarray(np.rot90(picture.to_ndarray(), quarter_turns(frame)))


def upright_aspect(stream: Any, frame: Any) -> Fraction:
    """Width of a pixel over its height in the upright picture; 1 where the file does not say."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if quarter_turns(frame) % 2 else aspect


def square_size(stream: Any, frame: Any) -> tuple[int, int]:
    """(width, height) of the upright picture in square pixels: the side that the pixels are longer along grows."""
    width, height = frame.width, frame.height
    if quarter_turns(frame) % 2:
        width, height = height, width
    aspect = upright_aspect(stream, frame)
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def in_square_pixels(picture_HWC: Frames, size: tuple[int, int]) -> Frames:
    """An upright picture brought to `square_size` (Lanczos, the filter of `prepare`): uint8 RGB [h, w, 3]."""
    if (picture_HWC.shape[1], picture_HWC.shape[0]) == size:
        return picture_HWC
    return np.asarray(Image.fromarray(picture_HWC).resize(size, Image.Resampling.LANCZOS))
