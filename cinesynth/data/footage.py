"""Footage: find the files, probe them, and decode frames by timestamp.

A `Decoder` gives frames by presentation timestamp (pts, in ticks of the stream's time base), so variable frame
rates need no special care. PyAV is the backend, always on one thread: frame threads hang after a seek.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from cinesynth.config import VIDEO_SUFFIXES, FootageSource
from cinesynth.data.samples import resolve_footage
from cinesynth.data.video import Frames
from cinesynth.errors import MediaError


@dataclass(frozen=True)
class VideoInfo:
    """What a file's first video stream is.

    Attributes:
        width, height: stored pixels, after rotation.
        pixel_aspect: width of a pixel over its height, after rotation.
        time_base: seconds per tick.
        fps: average frames per second as the container states it.
        codec: name of the decoder.
    """

    width: int
    height: int
    pixel_aspect: Fraction
    time_base: Fraction
    fps: float
    codec: str


class Decoder(Protocol):
    """One decoding library. Frames come out rotated as the file asks, in stored (maybe not square) pixels."""

    def probe(self, path: str) -> VideoInfo:
        """Properties of the first video stream. Raises MediaError when there is none that decodes."""

    def scan(self, path: str, width: int) -> Iterator[tuple[int, Frames]]:
        """Every frame in display order: its pts and a small RGB image, at most `width` wide.

        Undecodable packets are passed over. Raises MediaError when the file cannot be opened.
        """

    def read(self, path: str, pts: Sequence[int]) -> Frames:
        """The frames with these ascending timestamps (repeats allowed): uint8 RGB [T, H, W, 3].

        Raises MediaError, naming the timestamp, when one of them does not decode.
        """


def find_sources(footage: Sequence[FootageSource]) -> list[tuple[Path, int]]:
    """Video files of all sources, each with the index of the source that it comes from.

    Folders are searched recursively (symlinked folders are not entered, hidden files are passed over), names in
    sorted order; a file that two sources hold belongs to the first.
    """
    found: dict[Path, int] = {}
    for index, source in enumerate(footage):
        root = resolve_footage(source.path).absolute()
        for path in [root] if root.is_file() else _videos_below(root):
            found.setdefault(path, index)
    return list(found.items())


def _videos_below(root: Path) -> list[Path]:
    paths = []
    for folder, _, names in os.walk(root):
        wanted = (n for n in names if n.lower().endswith(VIDEO_SUFFIXES) and not n.startswith("."))
        paths += [Path(folder) / name for name in wanted]
    return sorted(paths)


class PyAVDecoder:
    """`Decoder` by PyAV (FFmpeg's libraries)."""

    def probe(self, path: str) -> VideoInfo:
        with _opened(path) as (container, stream):
            frame = next(_decode(container, stream), None)
            if frame is None:
                raise MediaError(f"{path} holds no frame that decodes")
            width, height = frame.width, frame.height
            aspect = stream.sample_aspect_ratio or Fraction(1)
            if _quarter_turns(frame) % 2:
                width, height, aspect = height, width, 1 / aspect
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            return VideoInfo(width, height, aspect, stream.time_base, fps, stream.codec_context.name)

    def scan(self, path: str, width: int) -> Iterator[tuple[int, Frames]]:
        with _opened(path) as (container, stream):
            last = None
            for frame in _decode(container, stream):
                if last is not None and frame.pts <= last:
                    continue
                last = frame.pts
                scale = min(1.0, width / frame.width)
                size = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
                yield frame.pts, _pixels(frame, size)

    def read(self, path: str, pts: Sequence[int]) -> Frames:
        wanted = set(pts)
        with _opened(path) as (container, stream):
            found = _collect(container, stream, wanted, seek=True)
        if found.keys() != wanted:  # a seek that lands too late, which some containers do: from the start instead
            with _opened(path) as (container, stream):
                found = _collect(container, stream, wanted, seek=False)
        missing = sorted(wanted - found.keys())
        if missing:
            raise MediaError(f"{path}: no frame decodes at timestamp {missing[0]} ({len(missing)} of {len(wanted)})")
        return np.stack([found[p] for p in pts])


def crop_resize(frames_THWC: Frames, height: int, width: int, pixel_aspect: Fraction = Fraction(1)) -> Frames:
    """Centre-crop to the target's aspect, taking the shape of the pixels into account, then resize (Lanczos).

    The same filter as the one that brings a user's first frame to size: uint8 [T, height, width, 3].
    """
    rows, columns = frames_THWC.shape[1:3]
    # The largest box of the target's aspect in display space, written in stored pixels.
    scale = min(columns * float(pixel_aspect) / width, rows / height)
    box_width, box_height = width * scale / float(pixel_aspect), height * scale
    left, top = (columns - box_width) / 2, (rows - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box=box))
        for frame in frames_THWC
    ]
    return np.stack(resized)


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, OSError, ArithmeticError) as e:  # a damaged header can hold a time base of 0
        raise MediaError(f"{path} cannot be decoded: {e}") from e


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """Frames with a timestamp; packets that do not decode are passed over."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from (frame for frame in frames if frame.pts is not None)


def _collect(container: Any, stream: Any, wanted: set[int], seek: bool) -> dict[int, Frames]:
    if seek:
        container.seek(min(wanted), stream=stream, backward=True)
    found: dict[int, Frames] = {}
    for frame in _decode(container, stream):
        if frame.pts in wanted:
            found.setdefault(frame.pts, _pixels(frame))
        if frame.pts >= max(wanted):
            break
    return found


def _pixels(frame: Any, size: tuple[int, int] | None = None) -> Frames:
    if size is not None and size != (frame.width, frame.height):
        frame = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="AREA")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame)))


def _quarter_turns(frame: Any) -> int:
    """Counterclockwise quarter turns that bring the stored picture upright."""
    return round(frame.rotation / 90) % 4
