"""Read and write whole videos as uint8 frames, through PyAV. They are read as `prepare` shows them, see `shown`.

Two codecs: `h264` (yuv420p MP4 that every player shows) for people, `ffv1` (lossless RGB in Matroska) for
evaluation, where a codec's loss would be measured as the model's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from cinesynth.data.shown import chosen_stream, in_square_pixels, pixels, square_size
from cinesynth.errors import MediaError
from cinesynth.pictures import Frames
from cinesynth.wan.family import DEFAULT_FAMILY

Codec = Literal["h264", "ffv1"]

_ENCODERS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    # cpu-independent: without it x264 gives other bytes for the same frames from one call to the next.
    "h264": ("mp4", "libx264", "yuv420p", {"crf": "16", "preset": "medium", "x264-params": "cpu-independent=1"}),
    "ffv1": ("matroska", "ffv1", "bgr0", {}),
}

_MOST_STRETCH = 8  # a pixel aspect beyond it is no camera's


def write_video(
    path: str | os.PathLike[str],
    frames_THWC: Frames,
    fps: float = DEFAULT_FAMILY.fps,
    codec: Codec = "h264",
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write frames to a file that appears whole or not at all.

    Args:
        path: target; `.mp4` for h264, `.mkv` for ffv1.
        frames_THWC: uint8 RGB, sides even for h264.
        fps: frames per second.
        codec: `h264` (lossy, BT.709 limited range) or `ffv1` (bit-exact RGB).
        metadata: stored as JSON in the container's `comment` tag; `read_metadata` gives it back.

    Raises:
        MediaError: wrong shape or type, or odd sides for h264.
    """
    frames = np.asarray(frames_THWC)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise MediaError(f"{path}: frames must be uint8 [T, H, W, 3] with T > 0, not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if codec == "h264" and (height % 2 or width % 2):
        raise MediaError(f"{path}: H.264 in yuv420p needs even sides, not {width}x{height}")
    container_format, encoder, pixel_format, options = _ENCODERS[codec]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    movflags = {"movflags": "+faststart"} if container_format == "mp4" else {}
    try:
        with av.open(str(temporary), "w", format=container_format, options=movflags) as container:
            if metadata is not None:
                container.metadata["comment"] = json.dumps(metadata, sort_keys=True)
            stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001), options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            stream.codec_context.thread_count = 1
            if codec == "h264":
                stream.codec_context.color_range = 1  # limited
                stream.codec_context.colorspace = 1  # BT.709
                stream.codec_context.color_primaries = 1
                stream.codec_context.color_trc = 1
            for image in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                if codec == "h264":
                    frame = frame.reformat(format=pixel_format, dst_colorspace="ITU709", threads=1)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class VideoFacts:
    """What a whole video is, as it is shown.

    Attributes:
        num_frames: that were counted.
        width, height: of the upright picture in square pixels.
        fps: average frames per second; 0 where the container does not state it.
        codec: FFmpeg's name.
    """

    num_frames: int
    width: int
    height: int
    fps: float
    codec: str


def read_video(path: str | os.PathLike[str], num_frames: int | None = None) -> tuple[Frames, float]:
    """Frames as they are shown, upright and in square pixels: uint8 RGB [T, H, W, 3], and frames per second (or 0).

    Args:
        path: of the file.
        num_frames: only the first ones; default: all.

    Raises MediaError, naming the file, when it does not decode whole, or its picture changes size.
    """
    rate, frames = 0.0, []
    for frame, stream in _decoded(path, num_frames):
        rate = float(stream.average_rate or 0)
        frames.append(in_square_pixels(pixels(frame), square_size(stream, frame)))
    return np.stack(frames), rate


def read_frames(path: str | os.PathLike[str], wanted: Collection[int]) -> list[Frames]:
    """The frames [H, W, 3] of these indices, in their order, as `read_video` gives them; no other one is kept.

    Raises MediaError as `read_video` does, and where the video is shorter.
    """
    found = []
    for index, (frame, stream) in enumerate(_decoded(path, max(wanted) + 1)):
        if index in wanted:
            found.append(in_square_pixels(pixels(frame), square_size(stream, frame)))
    if len(found) < len(set(wanted)):
        raise MediaError(f"{path} holds fewer than {max(wanted) + 1} frames")
    return found


def inspect_video(path: str | os.PathLike[str], num_frames: int | None = None) -> VideoFacts:
    """What a video is, from decoding its first frames (default: all) one by one: none is kept.

    Raises MediaError as `read_video` does.
    """
    count, first = 0, None
    for frame, stream in _decoded(path, num_frames):
        count += 1
        first = first or (*square_size(stream, frame), float(stream.average_rate or 0), stream.codec_context.name)
    assert first is not None
    return VideoFacts(count, *first)


def _decoded(path: str | os.PathLike[str], num_frames: int | None) -> Iterator[tuple[Any, Any]]:
    """Each of the first frames with its stream. There is at least one, and all have one size."""
    size, count = None, 0
    try:
        if not Path(path).stat().st_size or Path(path).is_dir():
            raise MediaError(f"{path} is {'a folder' if Path(path).is_dir() else 'empty'}; give a video file")
        with av.open(str(path)) as container:
            stream = chosen_stream(container, str(path))
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise MediaError(f"{path}: frame {count} is damaged")
                if size is None:
                    size = (frame.width, frame.height)
                    _check_aspect(path, size, square_size(stream, frame))
                if (frame.width, frame.height) != size:
                    raise MediaError(
                        f"{path}: the picture changes size at frame {count}, from {size[0]}x{size[1]} to "
                        f"{frame.width}x{frame.height}; cut the file there"
                    )
                yield frame, stream
                count += 1
                if count == num_frames:
                    return
    except (av.error.FFmpegError, OSError, ArithmeticError) as e:  # a damaged header can hold a time base of 0
        raise MediaError(f"{path} cannot be decoded: {getattr(e, 'strerror', None) or e}") from e
    if not count:
        raise MediaError(f"{path} holds no frame that decodes")


def _check_aspect(path: str | os.PathLike[str], stored: tuple[int, int], square: tuple[int, int]) -> None:
    if max(square) > _MOST_STRETCH * max(stored):
        asked, there = (f"{width}x{height}" for width, height in (square, stored))
        raise MediaError(f"{path} asks to be shown as {asked}, and holds {there} pixels; its header is damaged")


def decoder() -> str:
    """Who decodes, with the versions that may change pixels, for records."""
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}, rgb24"


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `write_video` stored; empty if there is none."""
    with av.open(str(path)) as container:
        tags = {k.lower(): v for k, v in container.metadata.items()}
    return json.loads(tags["comment"]) if "comment" in tags else {}
