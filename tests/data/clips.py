"""Small video files whose frames and timestamps are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from cinesynth.scripted.series import scripted_clip


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


def encode_frames(
    path: Path,
    frames: Sequence[av.VideoFrame],
    fps: int = 25,
    tags: tuple[int, int] | None = None,
    pixel_format: str = "yuv420p",
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    first: int = 0,
) -> Path:
    """Frames as H.264 (or another codec) with what `write_video` does not offer; `tags` are (matrix, range).

    The first frame is shown `first` frames after the start.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pixel_format
        stream.codec_context.thread_count = 1
        if tags is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = first + i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_avi(path: Path, pictures: Sequence[np.ndarray], fps: int = 25, crf: int = 1) -> Path:
    """Pictures with B-frames, whose presentation times the container does not state; a key frame in 25."""
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    options = {"crf": str(crf), "bf": "3", "b_strategy": "0", "x264-params": "keyint=25:scenecut=0"}
    return encode_frames(path, frames, fps, options=options)


def write_two_sizes(folder: Path, size: tuple[int, int]) -> Path:
    """A broadcast that changes its aspect: two transport streams of 30 frames, one behind the other.

    The first is 96x64; `size` is the (height, width) of the second, which begins 60 frames after the first.
    """
    parts = []
    for number, (height, width) in enumerate(((64, 96), size)):
        pictures = scripted_clip(0, 1, 64, 96).frames[:30, :height, :width]
        frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24") for f in pictures]
        parts.append(encode_frames(folder / f"{number}.ts", frames, first=60 * number).read_bytes())
    path = folder / "both.ts"
    path.write_bytes(b"".join(parts))
    return path


def flip_bytes(source: Path, target: Path, count: int, seed: int) -> Path:
    """A copy of an MP4 or AVI with `count` flipped bits in its pictures."""
    data = bytearray(source.read_bytes())
    start = data.find(b"movi" if source.suffix == ".avi" else b"mdat") + 2000
    rng = np.random.default_rng(seed)
    for place in rng.integers(start, len(data) - 60_000, count):
        data[place] ^= 1 << rng.integers(8)
    target.write_bytes(data)
    return target
