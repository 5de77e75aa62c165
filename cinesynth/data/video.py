"""Read and write whole videos as uint8 frames, through PyAV.

Two codecs: `h264` (yuv420p MP4 that every player shows) for people, `ffv1` (lossless RGB in Matroska) for
evaluation, where a codec's loss would be measured as the model's.
"""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from cinesynth.errors import MediaError
from cinesynth.pictures import Frames
from cinesynth.wan.family import DEFAULT_FAMILY

Codec = Literal["h264", "ffv1"]

_ENCODERS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    # cpu-independent: without it x264 gives other bytes for the same frames from one call to the next.
    "h264": ("mp4", "libx264", "yuv420p", {"crf": "16", "preset": "medium", "x264-params": "cpu-independent=1"}),
    "ffv1": ("matroska", "ffv1", "bgr0", {}),
}


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


def read_video(path: str | os.PathLike[str]) -> tuple[Frames, float]:
    """All frames of the first video stream: uint8 RGB [T, H, W, 3], and its average frames per second.

    Raises MediaError, naming the file, when nothing can be decoded.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames = [frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (av.error.FFmpegError, OSError) as e:
        raise MediaError(f"{path} cannot be decoded: {e}") from e
    if not frames:
        raise MediaError(f"{path} holds no frames")
    return np.stack(frames), rate


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `write_video` stored; empty if there is none."""
    with av.open(str(path)) as container:
        tags = {k.lower(): v for k, v in container.metadata.items()}
    return json.loads(tags["comment"]) if "comment" in tags else {}
