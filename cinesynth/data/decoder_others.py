"""Decoders by decord and torchcodec, for those who have a reason to prefer them (a GPU, an existing parity).

Both find a frame by time in seconds; its own timestamp is compared with the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cinesynth.data.decoder import VideoInfo, probe
from cinesynth.data.video import Frames
from cinesynth.errors import ConfigError, MediaError


class DecordDecoder:
    """`Decoder` by decord 0.6: opened in the worker with one thread and closed at once, as its readers grow."""

    def read(self, path: str, pts: Sequence[int]) -> Frames:
        import decord

        info = probe(path)
        try:
            reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            seconds = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
            index = {_ticks(float(s), info.time_base): i for i, s in enumerate(seconds)}
            missing = sorted(set(pts) - index.keys())
            if missing:
                raise MediaError(f"{path}: decord has no frame at timestamp {missing[0]} ({len(missing)})")
            frames = reader.get_batch([index[p] for p in pts]).asnumpy()
        except decord.DECORDError as e:
            raise MediaError(f"{path} cannot be decoded by decord: {str(e).splitlines()[0]}") from e
        return _as_assumed(frames, info)


class TorchcodecDecoder:
    """`Decoder` by torchcodec, which needs FFmpeg's shared libraries on the machine."""

    def __init__(self) -> None:
        try:
            import torchcodec.decoders  # noqa: F401
        except RuntimeError as e:
            raise ConfigError(
                "decode.backend: torchcodec finds no FFmpeg libraries (Debian: apt-get install ffmpeg); use pyav"
            ) from e

    def read(self, path: str, pts: Sequence[int]) -> Frames:
        from torchcodec.decoders import VideoDecoder

        info = probe(path)
        try:
            decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
            batch = decoder.get_frames_played_at([float((p + Fraction(1, 4)) * info.time_base) for p in pts])
        except (RuntimeError, ValueError, IndexError) as e:
            raise MediaError(f"{path} cannot be decoded by torchcodec: {str(e).splitlines()[0]}") from e
        found = [_ticks(float(s), info.time_base) for s in batch.pts_seconds]
        for wanted, got in zip(pts, found, strict=True):
            if wanted != got:
                raise MediaError(f"{path}: torchcodec has no frame at timestamp {wanted}; the nearest is {got}")
        return _as_assumed(batch.data.numpy(), info)


def _as_assumed(frames_THWC: Frames, info: VideoInfo) -> Frames:
    """Untagged HD frames, which both convert as BT.601, as if they had been converted as BT.709."""
    if info.matrix != "bt709 (assumed)":
        return frames_THWC
    change = (_rgb_from_yuv(0.2126, 0.0722) @ np.linalg.inv(_rgb_from_yuv(0.299, 0.114))).astype(np.float32)
    return np.stack([np.clip(np.rint(f.astype(np.float32) @ change.T), 0, 255).astype(np.uint8) for f in frames_THWC])


def _rgb_from_yuv(kr: float, kb: float) -> np.ndarray:
    """3x3 matrix from (Y, Cb, Cr), centred chroma of range 1, to RGB (ITU-R BT.601 and BT.709, section 3)."""
    kg = 1 - kr - kb
    red, blue = 2 * (1 - kr), 2 * (1 - kb)
    return np.array([[1, 0, red], [1, -blue * kb / kg, -red * kr / kg], [1, blue, 0]])


def _ticks(seconds: float, time_base: Fraction) -> int:
    return round(seconds / float(time_base))
