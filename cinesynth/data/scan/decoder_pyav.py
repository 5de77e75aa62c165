"""Decode video with PyAV: probe a file, scan all its frames, read chosen frames.

PyAV probes and scans for every backend. It runs on one thread, as frame threads hang after a seek.

How well damage is noticed depends on the codec. Measurements with flipped bytes missed hardly a damaged picture of
H.264, MPEG-4, ProRes and AV1: what was missed was flat grey, or a complaint that came 19 pictures late (H.264 with
B-frames near the end of a file). HEVC's decoder complains only in its log, and late, so damage counts for a whole group
of pictures. The decoders of VP9 and MJPEG often say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import av
import av.logging
import numpy as np
from av.video.reformatter import ColorRange

from cinesynth.data.scan.decoder import Change, VideoInfo, silent, unchanged
from cinesynth.data.scan.disk_errors import check_readable, is_ambiguous, is_of_disk
from cinesynth.data.scan.timing import MendedTimes, is_mended
from cinesynth.data.scan.watch import Beat
from cinesynth.data.shown import MATRICES, assumed_hd, chosen_stream, is_cover, pixels, quarter_turns, upright_aspect
from cinesynth.errors import AttemptFailed, MediaError
from cinesynth.pictures import Frames

_REORDERED = 16  # most frames from a picture to one that refers to it, or to the decoder's complaint
_MARKS_DAMAGE = "h264"
_RATE = Fraction(25)  # frames per second of a file that states none
_STEADY = 0.02  # by which the average rate of a constant one may seem to differ: a few frames at the ends
_TRANSFERS = {16: "pq", 18: "hlg"}


@dataclass(frozen=True)
class ScannedFrame:
    """One frame of a scan; valid until the next one is asked for."""

    pts: int | None
    """When it is shown, as the file states it, in ticks; may be missing or wrong, see `timing`."""
    dts: int | None
    """When the packet was due for decoding that brought it out."""
    damaged: bool
    """The decoder reported an error in it, or in a frame that it refers to."""
    key: bool
    """Nothing after it refers to anything before it."""
    interlaced: bool
    _frame: Any

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture in stored pixels."""
        size = self._frame.width, self._frame.height
        return size[::-1] if quarter_turns(self._frame) % 2 else size

    def rgb(self, width: int) -> Frames:
        """uint8 RGB [h, w, 3], scaled down to at most `width` stored columns, upright."""
        scale = min(1.0, width / self._frame.width)
        size = max(2, round(self._frame.width * scale)), max(2, round(self._frame.height * scale))
        return pixels(self._frame, size)


def probe(path: str) -> VideoInfo:
    """Properties of the chosen video stream. Raises MediaError when there is none that decodes."""
    with _opened(path) as (container, stream):
        frame = next((f for f, _ in _decode(container, stream)), None)
        if frame is None:
            raise MediaError(f"{path} holds no frame that decodes")
        width, height = frame.width, frame.height
        turns = quarter_turns(frame)
        if turns % 2:
            width, height = height, width
        components = frame.format.components
        tagged = MATRICES.get(int(frame.colorspace))
        assumed = "bt709" if assumed_hd(frame) else "bt601"
        full = int(frame.color_range) == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        return VideoInfo(
            width=width,
            height=height,
            pixel_aspect=upright_aspect(stream, frame),
            rotation=(360 - 90 * turns) % 360,
            time_base=stream.time_base,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            bits=max(component.bits for component in components),
            matrix=tagged or f"{assumed} (assumed)",
            range="full" if full else "limited",
            transfer=_TRANSFERS.get(int(frame.color_trc), "sdr"),
            interlaced=bool(frame.interlaced_frame),
            streams=sum(not is_cover(s) for s in container.streams.video),
            duration_s=float(container.duration or 0) / av.time_base,
            alpha=any(component.is_alpha for component in components) or stream.metadata.get("alpha_mode") == "1",
        )


def scan(path: str) -> Iterator[ScannedFrame]:
    """Every frame in display order; what does not decode is passed over, and marks what follows as damaged.

    Damage lasts until the next key frame, or the one after it where a decoder that complains late has just done so;
    see `spread_damage` for what lies before it. Raises MediaError when the file cannot be opened.
    """
    with _opened(path) as (container, stream), _errors_of(stream.codec_context.codec.name) as complaints:
        damaged, late_by = False, 0
        for frame, lost in _decode(container, stream):
            late_by = _REORDERED if complaints() else max(0, late_by - 1)
            if frame.key_frame and not frame.is_corrupt:
                damaged = False
            damaged = damaged or lost or bool(frame.is_corrupt) or late_by > 0
            yield ScannedFrame(
                frame.pts, frame.dts, damaged, bool(frame.key_frame), bool(frame.interlaced_frame), frame
            )


@contextmanager
def _errors_of(codec: str) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether a decoder has logged an error since its last call.

    H.264's log is not read: its decoder marks damaged frames, and logs errors for slightly wrong reference marking,
    which many cameras write.
    """
    if codec == _MARKS_DAMAGE:
        yield lambda: False
        return
    level, skipping = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else an error like the last one, even of another file, is not logged
    try:
        with av.logging.Capture() as logged:

            def complaints() -> bool:
                found = any(severity <= av.logging.ERROR and name == codec for severity, name, _ in logged)
                logged.clear()
                return found

            yield complaints
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skipping)


def mended_times(path: str) -> MendedTimes:
    """What gives the frames of a file their times where the stated ones cannot be used, see `timing`."""
    with _opened(path) as (_, stream):
        rate, average, least = stream.guessed_rate or _RATE, stream.average_rate, stream.base_rate
        step = max(Fraction(1), 1 / (rate * stream.time_base))
        # `base_rate` is the one that all timestamps are multiples of, of frames or of fields.
        regular = not average or not least or min(abs(least / average - n) for n in (1, 2)) < _STEADY
        return MendedTimes(step, regular or step == 1)


def spread_damage(damaged: Sequence[bool], key: Sequence[bool], codec: str) -> list[bool]:
    """Mark the frames before damage that may be damaged, too.

    In H.264 these are the frames that may refer to a damaged one. Other decoders notice damage late, so there all
    frames back to the key frame are marked.
    """
    spread = list(damaged)
    for i, (before, now) in enumerate(zip([False, *damaged], damaged, strict=False)):
        if now and not before:
            first = max(0, i - _REORDERED)
            if codec != _MARKS_DAMAGE:
                first = next((j for j in range(i - 1, -1, -1) if key[j]), 0)
            spread[first:i] = [True] * (i - first)
    return spread


def display_order(path: str, beat: Beat = silent) -> list[int]:
    """Timestamps of all packets of the chosen stream in display order, without decoding them."""
    found: set[int] = set()
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            beat()
            found.add(packet.pts if packet.pts is not None else packet.dts)
    return sorted(pts for pts in found if pts is not None)


class PyAVDecoder:
    """`Decoder` by PyAV (FFmpeg's libraries)."""

    module: ClassVar[str] = "av"

    def read(self, path: str, pts: Sequence[int], change: Change = unchanged, beat: Beat = silent) -> Frames:
        wanted = set(pts)
        if is_mended(pts):  # such times come from counting frames, so from the start
            times = mended_times(path)
            found = _collect(path, wanted, change, beat, lambda frame: times.of(frame.dts), seek=False)
        else:
            found = _collect(path, wanted, change, beat, _stated, seek=True)
            if found.keys() != wanted:  # a seek that lands too late, which some containers do: from the start instead
                found = _collect(path, wanted, change, beat, _stated, seek=False)
        missing = sorted(wanted - found.keys())
        if missing:
            raise MediaError(f"{path}: no frame decodes at timestamp {missing[0]} ({len(missing)} of {len(wanted)})")
        return np.stack([found[p] for p in pts])


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(path) as container:
            yield container, chosen_stream(container, path)
    except (av.error.FFmpegError, OSError, ArithmeticError) as e:  # a damaged header can hold a time base of 0
        why = getattr(e, "strerror", None) or e
        if is_of_disk(e) or (is_ambiguous(e) and not _fails_again(path)):
            raise AttemptFailed(f"{path} cannot be read: {why}") from e
        check_readable(path, whole=is_ambiguous(e))
        raise MediaError(f"{path} cannot be decoded: {why}") from e


def _fails_again(path: str) -> bool:
    """Whether FFmpeg meets an ambiguous error in a file once more."""
    try:
        with av.open(path) as container:
            for _ in container.demux(chosen_stream(container, path)):
                pass
    except (av.error.FFmpegError, OSError, ArithmeticError, MediaError) as e:
        return is_ambiguous(e)
    return False


def _decode(container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """All frames in display order, each with whether something before it did not decode."""
    lost = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, ArithmeticError):
            lost = True
            continue
        for frame in frames:
            yield frame, lost
            lost = False


def _collect(
    path: str, wanted: set[int], change: Change, beat: Beat, time: Callable[[Any], int | None], seek: bool
) -> dict[int, Frames]:
    """Time to picture, of the wanted frames that decode; `time` says which one a frame has."""
    found: dict[int, Frames] = {}
    with _opened(path) as (container, stream):
        if seek:
            container.seek(min(wanted), stream=stream, backward=True)
        for frame, _ in _decode(container, stream):
            beat()
            if (now := time(frame)) is None:
                continue
            if now in wanted and now not in found:
                found[now] = change(pixels(frame))
            if now >= max(wanted):
                break
    return found


def _stated(frame: Any) -> int | None:
    return frame.pts if frame.pts is not None else frame.dts
