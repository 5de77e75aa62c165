"""Videos that look alike on the screen are read alike, whatever their files hold; ours come back as they were."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cinesynth.data.scan.decoder_pyav import PyAVDecoder, scan
from cinesynth.data.video import inspect_video, read_frames, read_video, write_video
from cinesynth.errors import MediaError
from tests.data.clips import encode_frames


def waves(frames: int = 3, height: int = 64, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    channels = [127 + 110 * np.sin(a * x / width + b * y / height) for a, b in ((5, 2), (1, 6), (3, -4))]
    return np.repeat(np.stack(channels, -1).astype(np.uint8)[None], frames, axis=0)


def yuv(frames: np.ndarray, matrix: int, colour_range: int) -> list[av.VideoFrame]:
    """Frames in Y'CbCr without subsampling, converted with a matrix and range of FFmpeg's numbers."""
    pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
    return [
        picture.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=colour_range) for picture in pictures
    ]


def apart(path: Path, shown: np.ndarray) -> float:
    found, _ = read_video(path)
    assert found.shape == shown.shape
    return float(np.abs(found.astype(int) - shown).mean())


@pytest.mark.parametrize("size", [(32, 1280), (64, 96)])
def test_our_lossless_files_are_read_back_exactly(size: tuple[int, int], tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    path = write_video(tmp_path / "a.mkv", frames, 16, "ffv1")
    found, fps = read_video(path)
    assert np.array_equal(found, frames)
    assert fps == 16
    assert np.array_equal(read_video(path, num_frames=2)[0], frames[:2])


def test_matrix_and_range_are_taken_from_the_tags_or_assumed_by_size(tmp_path: Path) -> None:
    small, large = waves(), waves(height=32, width=1280)
    ways = {
        "bt709": (small, 1, 1, (1, 1)),
        "bt601": (small, 5, 1, (6, 1)),
        "full": (small, 1, 2, (1, 2)),
        "untagged": (small, 5, 1, None),
        "untagged HD": (large, 1, 1, None),
    }
    for name, (frames, matrix, colour_range, tags) in ways.items():
        path = tmp_path / f"{name}.mkv"
        encode_frames(path, yuv(frames, matrix, colour_range), tags=tags, pixel_format="yuv444p")
        assert apart(path, frames) < 2, name


def turned(path: Path) -> Path:
    """The MP4 with a header that asks players to turn it by a quarter turn clockwise."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def test_a_turned_file_is_read_upright_and_in_square_pixels(tmp_path: Path) -> None:
    shown = waves(height=96, width=128)
    lying = np.rot90(shown, axes=(1, 2))  # turning it clockwise gives `shown`
    path = write_video(tmp_path / "turned.mp4", lying)
    assert apart(turned(path), shown) < 3
    narrow = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f[:, ::2]), format="rgb24") for f in lying]
    frames = [f.reformat(format="yuv444p", dst_colorspace=1) for f in narrow]
    path = encode_frames(tmp_path / "both.mp4", frames, tags=(1, 1), pixel_format="yuv444p", aspect=Fraction(2))
    assert apart(turned(path), shown) < 3


@pytest.mark.parametrize(("aspect", "step"), [(Fraction(2), (1, 2)), (Fraction(1, 2), (2, 1))])
def test_pixels_that_are_not_square_are_made_so_by_enlarging(
    aspect: Fraction, step: tuple[int, int], tmp_path: Path
) -> None:
    shown = waves(height=128, width=128)
    stored = np.ascontiguousarray(shown[:, :: step[0], :: step[1]])
    path = encode_frames(tmp_path / "a.mkv", yuv(stored, 1, 1), tags=(1, 1), pixel_format="yuv444p", aspect=aspect)
    assert apart(path, shown) < 3
    facts = inspect_video(path)
    assert (facts.num_frames, facts.width, facts.height, facts.fps, facts.codec) == (3, 128, 128, 25, "h264")
    assert inspect_video(path, 2).num_frames == 2


def test_frames_are_those_of_prepare(tmp_path: Path) -> None:
    path = turned(write_video(tmp_path / "a.mp4", waves(5)))
    stamps = [frame.pts for frame in scan(str(path))]
    assert np.array_equal(PyAVDecoder().read(str(path), stamps), read_video(path)[0])


def test_what_cannot_be_read_whole_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    for name, side in (("a.h264", 64), ("b.h264", 96)):
        encode_frames(tmp_path / name, yuv(waves(2, side, side), 1, 1), pixel_format="yuv444p")
    (tmp_path / "grows.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\nat all\n")
    reasons = {
        "grows.h264": "changes size at frame 2, from 64x64 to 96x96",
        "folder.mp4": "is a folder",
        "link.mp4": "No such file",
        "empty.mp4": "is empty",
        "text.mp4": "Invalid data",
    }
    for name, reason in reasons.items():
        for read in (read_video, inspect_video):
            with pytest.raises(MediaError, match=reason) as refused:
                read(tmp_path / name)
            assert str(refused.value).startswith(str(tmp_path / name))
            assert "\n" not in str(refused.value)


def test_single_frames_are_those_of_the_whole(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (7, 16, 32, 3), np.uint8)
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1")
    for found, index in zip(read_frames(path, [0, 3, 6]), (0, 3, 6), strict=True):
        assert np.array_equal(found, frames[index])
    with pytest.raises(MediaError, match="fewer than 8 frames"):
        read_frames(path, [7])
