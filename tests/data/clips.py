"""Small video files whose frames and timestamps are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def level(frame: np.ndarray) -> int:
    """The number that `write_levels` painted into a frame."""
    return round(float(frame.mean()) / 8)


def write_levels(path: Path, pts: Sequence[int], time_base: Fraction = Fraction(1, 1000), size: int = 32) -> Path:
    """A lossless grey video with a frame at each timestamp; frame i has brightness 8 i (i modulo 32)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = size, size, "bgr0", time_base
        stream.codec_context.time_base = time_base
        for i, stamp in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 8 * (i % 32), np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path
