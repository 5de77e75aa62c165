"""When the frames of a file are shown: as the file states it, or by FFmpeg's best-effort rule where that is unusable.

AVI states no presentation times, and some files state those of decoding instead: with B-frames, such times go back
from frame to frame while the times of decoding (dts) go on. libavcodec's `guess_correct_pts` counts both and believes
what goes back less often. Here the whole file is judged at once, so that its first frames are not judged otherwise
than its last ones; and a fault in a hundred frames does not make the other times unusable.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

MENDED = 4 * 10**18
"""The first timestamp of a file whose times were mended. No file states such a number, so it says how to find it."""

_CERTAIN = 3  # faults after which, if they are too many for the frames so far, the rest of the file is not needed
_TOLERATED = 0.01  # faults a frame


class TimesUnusable(Exception):
    """The stated times go back or are missing, and those of decoding do not."""


class StatedTimes:
    """Gives the frames of a stream, in display order, the times that the file states.

    Attributes:
        late: frames left out so far, as their time is not after that of a frame before.
        untimed: frames left out so far, as they have no time.
        gaps: of frames with a time, the numbers of those before which a frame is missing, as its time is wrong.
    """

    def __init__(self) -> None:
        self.late = self.untimed = 0
        self.gaps: list[int] = []
        self._seen = self._given = 0
        self._last: int | None = None
        self._before: tuple[int | None, int | None] = (None, None)
        self._faults = 0  # of presentation times, less those of decoding
        self._gap = self._most = 0

    def of(self, pts: int | None, dts: int | None) -> int | None:
        """The time of the next frame; None where it has none that can be used.

        Raises TimesUnusable when it is certain that the times of decoding are the better ones.
        """
        self._seen += 1
        time = pts if pts is not None else dts
        if time is None:
            self.untimed += 1
            self._gap += self._last is not None
            return None
        self._faults += self._gap + _back(time, self._before[0]) - _back(dts, self._before[1])
        if self._faults > self._most:  # where files were joined, the times of decoding have gone back just before
            self._most = self._faults
            self.gaps.append(self._given)
        self._before, self._gap = (time, dts if dts is not None else time), 0
        if self._wrong() > _CERTAIN + self._seen * _TOLERATED:
            raise TimesUnusable
        if self._last is not None and time <= self._last:
            self.late += 1
            return None
        self._last = time
        self._given += 1
        return time

    def finish(self) -> None:
        """Call after the last frame. Raises TimesUnusable where the times of decoding are the better ones."""
        if self._wrong() > self._seen * _TOLERATED:
            raise TimesUnusable

    def _wrong(self) -> int:
        """Frames whose stated time is wrong; a single one that lies far ahead makes those after it late."""
        return max(self._faults, self.late) if self._faults > 0 else 0


class MendedTimes:
    """Gives the frames of a stream, in display order, rising times from `MENDED` on.

    Args:
        step: ticks that a frame lasts.
        even: whether all last so long. Otherwise each gets the time at which it was decoded, from the first one's on,
            and `step` is for those without.
    """

    def __init__(self, step: Fraction, even: bool) -> None:
        self._step, self._even = step, even
        self._first: int | None = None
        self._last = MENDED
        self._count = 0

    def of(self, dts: int | None) -> int:
        """The time of the next frame."""
        count, self._count = self._count, self._count + 1
        if self._even:
            return MENDED + round(count * self._step)
        time = self._last + max(1, round(self._step)) if count else MENDED
        if dts is not None:
            self._first = self._first if self._first is not None else dts - (time - MENDED)
            decoded = MENDED + dts - self._first
            time = decoded if decoded > self._last else time
        self._last = time
        return time


def is_mended(pts: Sequence[int]) -> bool:
    """Whether timestamps are of a file whose times were mended."""
    return bool(pts) and pts[0] >= MENDED


def _back(time: int | None, before: int | None) -> bool:
    return time is not None and before is not None and time <= before
