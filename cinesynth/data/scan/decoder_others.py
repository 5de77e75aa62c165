"""Decoders by decord and torchcodec, for those who have a reason to prefer them (a GPU, or results that must match).

Both know a frame by its place in display order; torchcodec's timestamp is compared with the one that was asked for.
They order frames by the times that a file states, so where these had to be mended, PyAV reads for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from cinesynth.data.scan.decoder import Change, VideoInfo, silent, unchanged
from cinesynth.data.scan.decoder_pyav import PyAVDecoder, display_order, probe
from cinesynth.data.scan.disk_errors import check_readable
from cinesynth.data.scan.timing import is_mended
from cinesynth.data.scan.watch import Beat
from cinesynth.errors import ConfigError, MediaError
from cinesynth.pictures import Frames


class DecordDecoder:
    """`Decoder` by decord 0.6: each call opens a reader with one thread and closes it, as idle readers grow."""

    module: ClassVar[str] = "decord"

    def read(self, path: str, pts: Sequence[int], change: Change = unchanged, beat: Beat = silent) -> Frames:
        if is_mended(pts):
            return PyAVDecoder().read(path, pts, change, beat)
        return _believed(path, lambda: self._read(path, pts, change, beat))

    def _read(self, path: str, pts: Sequence[int], change: Change, beat: Beat) -> Frames:
        import decord

        info = probe(path)
        # Frames are found by place: decord's own timestamps are float32, and begin at 0 in every file.
        index = _places(path, pts, "decord", beat)
        try:
            reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            if len(reader) != len(index):
                raise MediaError(f"{path}: decord counts {len(reader)} frames, FFmpeg {len(index)}; use pyav")
            frames = {}
            for wanted in sorted(set(pts)):
                beat()
                frames[wanted] = change(_as_assumed(reader[index[wanted]].asnumpy(), info))
        except decord.DECORDError as e:
            raise MediaError(f"{path} cannot be decoded by decord: {str(e).splitlines()[0]}") from e
        return np.stack([frames[p] for p in pts])


class TorchcodecDecoder:
    """`Decoder` by torchcodec, which needs FFmpeg's shared libraries on the machine."""

    module: ClassVar[str] = "torchcodec"

    def __init__(self) -> None:
        try:
            import torchcodec.decoders  # noqa: F401
        except RuntimeError as e:
            raise ConfigError(
                "decode.backend: torchcodec finds no FFmpeg libraries (Debian: apt-get install ffmpeg); use pyav"
            ) from e

    def read(self, path: str, pts: Sequence[int], change: Change = unchanged, beat: Beat = silent) -> Frames:
        if is_mended(pts):
            return PyAVDecoder().read(path, pts, change, beat)
        return _believed(path, lambda: self._read(path, pts, change, beat))

    def _read(self, path: str, pts: Sequence[int], change: Change, beat: Beat) -> Frames:
        from torchcodec.decoders import VideoDecoder

        # Frames are found by place: torchcodec's search by time ends too early where the rate varies.
        info, index = probe(path), _places(path, pts, "torchcodec", beat)
        try:
            decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
            frames = {}
            for wanted in sorted(set(pts)):
                beat()
                frame = decoder.get_frame_at(index[wanted])
                got = round(float(frame.pts_seconds) / float(info.time_base))
                if wanted != got:
                    raise MediaError(f"{path}: torchcodec has no frame at timestamp {wanted}; the nearest is {got}")
                frames[wanted] = change(_as_assumed(frame.data.numpy(), info))
        except (RuntimeError, ValueError, IndexError) as e:
            if isinstance(e, MediaError):
                raise
            raise MediaError(f"{path} cannot be decoded by torchcodec: {str(e).splitlines()[0]}") from e
        return np.stack([frames[p] for p in pts])


def _believed(path: str, read: Callable[[], Frames]) -> Frames:
    """What `read` gives. Its MediaError counts when it comes twice, and the disk gives all bytes of the file.

    Neither library tells every error of the disk from damage: decord takes some for the end of the file.
    """
    try:
        return read()
    except MediaError:
        check_readable(path)
    return read()


def _places(path: str, pts: Sequence[int], backend: str, beat: Beat) -> dict[int, int]:
    """The place in display order of every timestamp. Raises MediaError when one of `pts` is not among them."""
    index = {p: i for i, p in enumerate(display_order(path, beat))}
    missing = sorted(set(pts) - index.keys())
    if missing:
        raise MediaError(f"{path}: {backend} has no frame at timestamp {missing[0]} ({len(missing)})")
    return index


def _as_assumed(frame_HWC: Frames, info: VideoInfo) -> Frames:
    """Correct an untagged HD frame: both libraries convert it by BT.601, and it is assumed to be BT.709."""
    if info.matrix != "bt709 (assumed)":
        return frame_HWC
    change = (_rgb_from_yuv(0.2126, 0.0722) @ np.linalg.inv(_rgb_from_yuv(0.299, 0.114))).astype(np.float32)
    return np.clip(np.rint(frame_HWC.astype(np.float32) @ change.T), 0, 255).astype(np.uint8)


def _rgb_from_yuv(kr: float, kb: float) -> np.ndarray:
    """3x3 matrix from (Y, Cb, Cr), centred chroma of range 1, to RGB (ITU-R BT.601 and BT.709, section 3)."""
    kg = 1 - kr - kb
    red, blue = 2 * (1 - kr), 2 * (1 - kb)
    return np.array([[1, 0, red], [1, -blue * kb / kg, -red * kr / kg], [1, blue, 0]])
