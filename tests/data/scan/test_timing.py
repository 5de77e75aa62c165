"""Times of frames: stated ones as they are, and FFmpeg's best-effort rule where these go back or are missing."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cinesynth.data.config import Backend, ShotSettings
from cinesynth.data.scan.decoder_pyav import PyAVDecoder
from cinesynth.data.scan.decoders import DECODERS, make_decoder
from cinesynth.data.scan.scan import scan_file
from cinesynth.data.scan.timing import MENDED, MendedTimes, StatedTimes, TimesUnusable, is_mended
from cinesynth.errors import MediaError
from tests.data.clips import encode_frames, write_avi

REORDERED = [1, 4, 3, 5, 2, 8, 7, 9, 6]  # times of decoding as an AVI's frames bring them to display order


def test_times_that_rise_are_those_that_are_stated() -> None:
    times = StatedTimes()
    assert [times.of(pts, dts) for pts, dts in ((5, 2), (9, 3), (None, 10), (11, None))] == [5, 9, 10, 11]
    times.finish()
    assert (times.late, times.untimed) == (0, 0)


def test_what_goes_back_with_the_times_of_decoding_is_left_out_and_counted() -> None:
    """Two files that were joined byte by byte."""
    times = StatedTimes()
    assert [times.of(n, n) for n in (3, 4, 5, 1, 4, 6)] == [3, 4, 5, None, None, 6]
    times.finish()
    assert times.late == 2


def test_frames_without_a_time_are_counted() -> None:
    times = StatedTimes()
    assert [times.of(None, None), times.of(3, 3), times.of(None, None)] == [None, 3, None]
    times.finish()
    assert times.untimed == 2


def _give(stated: list[int | None]) -> None:
    times = StatedTimes()
    for dts, pts in enumerate(stated):
        times.of(pts, dts if pts is not None else None)
    times.finish()


@pytest.mark.parametrize(
    "stated", [REORDERED, [1, 2, 3, 3, 4], [1, 2, None, 4, 5], [*range(300), 999, *range(301, 600)]]
)
def test_times_that_go_back_or_are_missing_while_decoding_goes_on_are_not_used(stated: list[int | None]) -> None:
    with pytest.raises(TimesUnusable):
        _give(stated)


def test_one_wrong_time_among_hundreds_leaves_the_others_as_they_are() -> None:
    times = StatedTimes()
    stated = [*range(1, 101), 90, *range(102, 301)]
    assert [time for dts, pts in enumerate(stated) if (time := times.of(pts, dts)) is None] == [None]
    times.finish()
    assert (times.late, times.gaps) == (1, [100])


def test_mended_times_are_even_or_those_of_decoding_where_the_rate_varies() -> None:
    even = MendedTimes(Fraction(1001, 24), even=True)
    assert [even.of(dts) - MENDED for dts in (7, 7, None, 900)] == [0, 42, 83, 125]
    varying = MendedTimes(Fraction(40), even=False)
    assert [varying.of(dts) - MENDED for dts in (80, 120, 300, 300, None)] == [0, 40, 220, 260, 300]


@pytest.mark.parametrize("backend", DECODERS)
def test_all_frames_of_an_avi_with_b_frames_come_evenly_and_in_order(backend: Backend, tmp_path: Path) -> None:
    if importlib.util.find_spec(DECODERS[backend].module) is None:
        pytest.skip(f"{backend} is not installed")
    path = str(write_avi(tmp_path / "old.avi", [np.full((64, 64, 3), 3 * i + 10, np.uint8) for i in range(75)]))
    found = scan_file(lambda: None, path, ShotSettings())
    assert (len(found.pts), found.late, found.untimed, found.info.times) == (75, 0, 0, "mended")
    assert set(np.diff(found.pts)) == {1}
    assert is_mended(found.pts[40:])
    assert not found.cuts
    chosen = found.pts[37:60:2]
    frames = make_decoder(backend).read(path, chosen)
    assert [round((float(f.mean()) - 10) / 3) for f in frames] == list(range(37, 60, 2))
    with pytest.raises(MediaError, match="no frame decodes at timestamp"):
        PyAVDecoder().read(path, [found.pts[-1] + 1])


@pytest.mark.parametrize(("name", "count"), [("h264_3_bframes", 75), ("xvid_packed", 70), ("h264_17_frames", 17)])
def test_archives_of_old_codecs_keep_all_their_frames(media: Path, name: str, count: int) -> None:
    found = scan_file(lambda: None, str(media / "field" / "avi_bframes" / f"{name}.avi"), ShotSettings())
    assert len(found.pts) == count
    assert set(np.diff(found.pts)) == {1}
    assert not found.cuts


def test_a_raw_stream_says_that_it_has_no_times(tmp_path: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * i, np.uint8), format="rgb24") for i in range(9)]
    path = encode_frames(tmp_path / "raw.h264", frames)
    with pytest.raises(MediaError, match=r"raw\.h264 holds no timestamps, as raw streams do; put it into a container"):
        scan_file(lambda: None, str(path), ShotSettings())
