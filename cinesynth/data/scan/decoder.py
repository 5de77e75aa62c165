"""A decoder gives the frames of a file by their presentation timestamps (pts), in ticks of the stream's time base.

Timestamps make a variable frame rate no special case. `decode.backend` chooses the library that reads chosen frames.
All libraries give the same pixels, which `tests/data/scan/test_decoder.py` checks. `decoders` holds their table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

from cinesynth.data.scan.watch import Beat
from cinesynth.pictures import Frames


@dataclass(frozen=True)
class VideoInfo:
    """Properties of the video stream that is read from a file.

    Attributes:
        width, height: stored pixels, after rotation.
        pixel_aspect: width of a pixel over its height, after rotation.
        rotation: degrees clockwise by which the file asks to be turned; a multiple of 90.
        time_base: seconds per tick.
        fps: average frames per second as the container states it.
        codec, pixel_format: FFmpeg's names.
        bits: per colour channel.
        matrix: `bt601`, `bt709`, `bt2020`; ` (assumed)` follows where the file does not say.
        range: `limited` or `full`.
        transfer: `sdr`, or `pq` and `hlg`, which are shown without tone mapping.
        interlaced: the first frame consists of two fields.
        streams: number of video streams, without cover pictures; FFmpeg's best one is read.
        duration_s: as the container states it; 0 where it does not.
        alpha: the pictures have transparent parts; their colours are shown as if they were opaque.
        times: `stated`, or `mended` where a scan found that the stated times cannot be used.
    """

    width: int
    height: int
    pixel_aspect: Fraction
    rotation: int
    time_base: Fraction
    fps: float
    codec: str
    pixel_format: str
    bits: int
    matrix: str
    range: str
    transfer: str
    interlaced: bool
    streams: int
    duration_s: float
    alpha: bool = False
    times: str = "stated"


Change = Callable[[Frames], Frames]


def unchanged(frame_HWC: Frames) -> Frames:
    """Keep the whole frame."""
    return frame_HWC


def silent() -> None:
    """Give no sign of life."""


class Decoder(Protocol):
    """A library that reads chosen frames. They come out upright, in stored pixels, which need not be square.

    Attributes:
        module: the Python module that it reads with.
    """

    module: ClassVar[str]

    def read(self, path: str, pts: Sequence[int], change: Change = unchanged, beat: Beat = silent) -> Frames:
        """Read the frames with these timestamps; `change` is applied to each as soon as it is decoded.

        Args:
            path: of the file.
            pts: timestamps of a scan, ascending; repeats are allowed.
            change: uint8 RGB [H, W, 3] to what is kept of it; default: all.
            beat: called at every frame that is decoded, wanted or not.

        Returns:
            uint8 RGB [T, H, W, 3].

        Raises MediaError, naming the timestamp, when one of them does not decode, and AttemptFailed when the disk does
        not give the file.
        """
