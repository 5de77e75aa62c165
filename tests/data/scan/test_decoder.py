"""Probing, scanning and reading files, against known timestamps and colours, OpenCV, and the other backends."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from cinesynth.data.config import Backend, ShotSettings
from cinesynth.data.footage.packages import sample_footage
from cinesynth.data.scan import decoder_pyav
from cinesynth.data.scan.decoder import Decoder
from cinesynth.data.scan.decoder_pyav import PyAVDecoder, display_order, probe, scan, spread_damage
from cinesynth.data.scan.decoders import DECODERS, make_decoder
from cinesynth.data.scan.scan import scan_file
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import AttemptFailed, ConfigError, MediaError
from cinesynth.pictures import Frames
from cinesynth.scripted.series import scripted_clip
from tests.data.clips import encode_frames, flip_bytes, level, write_levels, write_two_sizes

DECODER = PyAVDecoder()
_OPEN = av.open


@pytest.fixture(scope="module")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames with B-frames and a single key frame, the hard case for seeking."""
    return write_video(tmp_path_factory.mktemp("h264") / "clip.mp4", scripted_clip(0, 1, 64, 96).frames, fps=24)


def test_timestamps_of_a_variable_rate_file_are_kept(tmp_path: Path) -> None:
    pts = [0, 40, 80, 280, 290, 300, 700, 740]
    path = str(write_levels(tmp_path / "vfr.mkv", pts))
    assert [(frame.pts, level(frame.rgb(256))) for frame in scan(path)] == list(zip(pts, range(8), strict=True))
    assert probe(path).time_base == Fraction(1, 1000)


def test_frames_are_read_by_timestamp_in_the_order_asked_with_repeats(tmp_path: Path) -> None:
    path = str(write_levels(tmp_path / "vfr.mkv", [0, 40, 80, 280, 290, 300]))
    assert [level(f) for f in DECODER.read(path, [40, 40, 280, 300])] == [1, 1, 3, 5]
    with pytest.raises(MediaError, match="timestamp 41"):
        DECODER.read(path, [40, 41])


def test_reading_after_a_seek_gives_the_frames_of_a_whole_decode(h264: Path) -> None:
    frames, _ = read_video(h264)
    pts = [frame.pts for frame in scan(str(h264))]
    assert len(pts) == len(frames)
    for start in (0, 1, 37, len(pts) - 5):
        assert np.array_equal(DECODER.read(str(h264), pts[start : start + 5]), frames[start : start + 5])


@pytest.mark.parametrize("name", ["av1_video.mkv", "h265_video.mp4", "flipping_a_pancake.mkv", "nasa_13013.mp4"])
def test_other_codecs_and_containers_read_by_timestamp(media: Path, name: str) -> None:
    path = str(media / name)
    pts = [frame.pts for frame in scan(path)]
    assert pts == sorted(set(pts))
    chosen = [len(pts) // 3, len(pts) // 2, len(pts) - 1]
    whole = list(scan_pixels(path, {pts[i] for i in chosen}))
    assert np.array_equal(DECODER.read(path, [pts[i] for i in chosen]), np.stack(whole))


def scan_pixels(path: str, wanted: set[int]) -> list[np.ndarray]:
    return [frame.rgb(10_000) for frame in scan(path) if frame.pts in wanted]


def test_a_rotated_file_comes_out_upright(media: Path) -> None:
    path = str(media / "video_90.mov")
    info = probe(path)
    first = next(scan(path))
    small = first.rgb(10_000)
    ok, reference = cv2.VideoCapture(path).read()  # OpenCV turns frames by itself
    assert ok
    assert small.shape == reference.shape == (info.height, info.width, 3)
    assert (info.height > info.width, info.rotation) == (True, 90)
    difference = np.abs(cv2.cvtColor(reference, cv2.COLOR_BGR2RGB).astype(int) - small).mean()
    assert difference < 3  # another colour conversion; an upside-down frame differs by tens
    assert np.array_equal(DECODER.read(path, [first.pts])[0], small)


# Y'CbCr (120, 90, 200) by the formulas of BT.601 and BT.709, limited and full range.
COLOURS = {
    (6, 1): ("bt601", "limited", (236, 77, 44)),
    (6, 2): ("bt601", "full", (221, 82, 53)),
    (1, 1): ("bt709", "limited", (250, 91, 41)),
    (1, 2): ("bt709", "full", (233, 93, 49)),
    (2, 1): ("bt601 (assumed)", "limited", (236, 77, 44)),
}


@pytest.mark.parametrize("tags", COLOURS)
def test_matrix_and_range_are_applied_and_recorded(tags: tuple[int, int], tmp_path: Path) -> None:
    path = _one_colour(tmp_path / "colour.mp4", *tags, side=64)
    info, (matrix, range_, rgb) = probe(path), COLOURS[tags]
    assert (info.matrix, info.range) == (matrix, range_)
    assert np.abs(DECODER.read(path, [0])[0, 32, 32].astype(int) - rgb).max() <= 2


def test_untagged_hd_is_taken_as_bt709(tmp_path: Path) -> None:
    path = _one_colour(tmp_path / "hd.mp4", 2, 1, side=720)
    assert probe(path).matrix == "bt709 (assumed)"
    for backend in _backends():
        assert np.abs(backend.read(path, [0])[0, 300, 300].astype(int) - COLOURS[1, 1][2]).max() <= 2


@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [(720, 576, "bt601"), (1024, 576, "bt601"), (1280, 544, "bt709"), (960, 720, "bt709"), (576, 1024, "bt601")],
)
def test_what_is_assumed_of_untagged_sizes(width: int, height: int, matrix: str, tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
    path = encode_frames(tmp_path / "untagged.mp4", [frame], options={"preset": "ultrafast"})
    assert probe(str(path)).matrix == f"{matrix} (assumed)"


def test_ten_bits_are_recorded_and_decode(tmp_path: Path) -> None:
    path = _one_colour(tmp_path / "ten.mp4", 1, 1, side=64, pixel_format="yuv420p10le")
    assert probe(path).bits == 10
    assert np.abs(DECODER.read(path, [0])[0, 32, 32].astype(int) - COLOURS[1, 1][2]).max() <= 3


def _one_colour(path: Path, matrix: int, range_: int, side: int, pixel_format: str = "yuv420p") -> str:
    planes = np.concatenate(
        [np.full(n, value, np.uint8) for n, value in ((side**2, 120), (side**2 // 4, 90), (side**2 // 4, 200))]
    )
    frame = av.VideoFrame.from_ndarray(planes.reshape(side * 3 // 2, side), format="yuv420p")
    frame.colorspace, frame.color_range = matrix, range_
    given = frame if pixel_format == "yuv420p" else frame.reformat(format=pixel_format)
    encode_frames(path, [given] * 3, tags=(matrix, range_), pixel_format=pixel_format)
    return str(path)


def test_interlaced_footage_is_flagged(tmp_path: Path, h264: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in scripted_clip(0, 1, 64, 96).frames[:10]]
    path = encode_frames(tmp_path / "fields.mp4", frames, options={"x264-params": "interlaced=1:tff=1"})
    assert probe(str(path)).interlaced
    assert not probe(str(h264)).interlaced


def test_the_best_of_several_streams_is_read(media: Path) -> None:
    assert (probe(str(media / "nasa_13013.mp4")).streams, probe(str(media / "nasa_13013.mp4")).width) == (2, 480)


@pytest.mark.parametrize("backend", [name for name in DECODERS if name != "pyav"])
@pytest.mark.parametrize(
    "name", ["bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4", "video_90.mov", "vfr.mkv", "late.mkv"]
)
def test_backends_agree(backend: Backend, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Equal timestamps; equal frames, up to the rounding of untagged HD's matrix."""
    other = _backend(backend)
    if name in ("vfr.mkv", "late.mkv"):  # the second one begins after a second and a half
        offset = 1500 if name == "late.mkv" else 0
        stamps = [offset + ms for ms in (0, 40, 80, 280, 290, 300, 700, 740)]
        path = str(write_levels(tmp_path / name, stamps, size=64))
    elif name.endswith(".mov"):
        path = str(request.getfixturevalue("media") / name)
    else:
        path = str(sample_footage() / name)
    pts = [frame.pts for frame in scan(path)][:20]
    ours, theirs = DECODER.read(path, pts).astype(int), other.read(path, pts)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() <= (0.5 if name == "bigbuckbunny.mp4" else 0)
    with pytest.raises(MediaError):
        other.read(path, [pts[1] + 1])


def _backend(name: Backend) -> Decoder:
    try:
        return make_decoder(name)
    except ConfigError as e:
        pytest.skip(str(e))


def _backends() -> list[Decoder]:
    found: list[Decoder] = []
    for name in DECODERS:
        try:
            found.append(make_decoder(name))
        except ConfigError:
            continue
    return found


def test_a_backend_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"decode\.backend: decord is not installed"):
        make_decoder("decord")


def test_pixel_aspect_in_the_file_reaches_the_probe(tmp_path: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")] * 3
    path = encode_frames(tmp_path / "wide.mp4", frames, aspect=Fraction(4, 3))
    info = probe(str(path))
    assert info.pixel_aspect == Fraction(4, 3)
    assert probe(str(sample_footage() / "carphone_pristine.mp4")).pixel_aspect == Fraction(128, 117)


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        for _ in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated", "audio"])
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
        probe(str(path))


def test_a_file_that_ends_early_gives_the_frames_that_are_there(tmp_path: Path, h264: Path) -> None:
    data = h264.read_bytes()
    path = tmp_path / "half.mp4"
    path.write_bytes(data[: len(data) // 2])
    whole = [frame.pts for frame in scan(str(h264))]
    half = [(frame.pts, frame.damaged) for frame in scan(str(path))]
    assert 0 < len(half) < len(whole)
    # Frames whose references lie beyond the end are passed over; these are among the last in display order.
    assert [pts for pts, _ in half[:-3]] == whole[: len(half) - 3]
    assert {pts for pts, _ in half} < set(whole)


def test_flipped_bytes_are_found_until_the_next_key_frame(tmp_path: Path) -> None:
    clean = sample_footage() / "bikes.mp4"
    path = flip_bytes(clean, tmp_path / "flipped.mp4", count=3, seed=3)
    reference = {frame.pts: frame.rgb(160).astype(int) for frame in scan(str(clean))}
    seen, spread = _damage(path, reference)
    assert sum(seen) > 20, "the damage shows"
    assert not any(bad and not mark for bad, mark in zip(seen, spread, strict=True)), "what shows damage is marked"
    assert not all(spread), "a key frame ends it"
    assert not any(frame.damaged for frame in scan(str(clean)))


def _damage(path: Path, reference: dict[int, np.ndarray]) -> tuple[list[bool], list[bool]]:
    """Of each frame: whether it shows damage, and whether the scan says so."""
    frames = [(f.damaged, f.key, np.abs(f.rgb(160) - reference[f.pts]).mean() > 1) for f in scan(str(path))]
    damaged, key, seen = (list(column) for column in zip(*frames, strict=True))
    return seen, spread_damage(damaged, key, probe(str(path)).codec)


@pytest.mark.parametrize(
    ("codec", "options"), [("libx265", {"x265-params": "log-level=none:keyint=48"}), ("mpeg4", {"g": "48"})]
)
def test_400_flipped_bytes_are_found_by_decoders_that_only_log_errors(
    codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    pictures = [frame.rgb(640) for frame in scan(str(sample_footage() / "bikes.mp4"))][:144]
    frames = [av.VideoFrame.from_ndarray(picture[:352], format="rgb24") for picture in pictures]
    clean = encode_frames(tmp_path / "clean.mp4", frames, codec=codec, options=options)
    reference = {frame.pts: frame.rgb(160).astype(int) for frame in scan(str(clean))}
    assert _damage(clean, reference) == ([False] * 144, [False] * 144)
    data = bytearray(clean.read_bytes())
    start, size = data.find(b"mdat") + 8, len(data)
    for place in np.random.default_rng(0).integers(start, size - 8000, 400):
        data[place] ^= 0xFF
    (tmp_path / "flipped.mp4").write_bytes(data)
    found = [_damage(tmp_path / "flipped.mp4", reference) for _ in range(2)]
    assert found[0] == found[1], "what was said before is said again"
    seen, spread = found[0]
    assert sum(seen) > 40
    assert not any(bad and not mark for bad, mark in zip(seen, spread, strict=True))


def test_damage_reaches_back_over_the_frames_that_may_refer_to_it() -> None:
    damaged = [False] * 40 + [True] * 3 + [False] * 5 + [True] + [False]
    key = [i % 30 == 0 for i in range(len(damaged))]
    assert spread_damage(damaged, key, "h264") == [False] * 24 + [True] * 25 + [False]
    assert spread_damage(damaged, key, "hevc") == [False] * 30 + [True] * 19 + [False]


@pytest.mark.parametrize("size", [(48, 96), (64, 80)])
def test_a_picture_of_another_size_begins_a_shot(size: tuple[int, int], tmp_path: Path) -> None:
    path = write_two_sizes(tmp_path, size)
    found = scan_file(lambda: None, str(path), ShotSettings(detector="none"))
    assert found.sizes == ((0, 96, 64), (30, size[1], size[0]))
    assert found.cuts == ((30, 30),)
    assert not any(found.damaged)


def test_transparent_parts_are_known_and_shown_as_if_they_were_opaque(tmp_path: Path) -> None:
    picture = np.full((64, 64, 4), (0, 0, 255, 0), np.uint8)
    frames = [av.VideoFrame.from_ndarray(picture, format="bgra")] * 3
    path = str(encode_frames(tmp_path / "alpha.mkv", frames, codec="ffv1", pixel_format="bgra", options={"g": "1"}))
    assert probe(path).alpha
    assert tuple(DECODER.read(path, [0])[0, 0, 0]) == (255, 0, 0)


def test_a_file_that_cannot_be_read_is_no_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailed, match=r"gone\.mp4 cannot be read: No such file"):
        DECODER.read(str(tmp_path / "gone.mp4"), [0])


class _FailingFile(io.FileIO):
    """A file whose disk fails the first times that its second half is read."""

    def __init__(self, path: str, code: int, fails: list[None]) -> None:
        super().__init__(path)
        self._code, self._fails = code, fails
        self._half = os.path.getsize(path) // 2

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self._half and self._fails:
            self._fails.pop()
            raise OSError(self._code, os.strerror(self._code))
        return super().read(-1 if size is None else size) or b""


def _fail_once(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fails = [None]
    monkeypatch.setattr(decoder_pyav.av, "open", lambda path: _OPEN(_FailingFile(path, code, fails)))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_in_mid_file_is_no_damage(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 96, 128, 3), dtype=np.uint8)
    path = str(write_video(tmp_path / "clip.mkv", noise, codec="ffv1"))
    pts = display_order(path)
    with monkeypatch.context() as patch:
        _fail_once(patch, code)
        with pytest.raises(AttemptFailed, match=rf"clip\.mkv cannot be read: {os.strerror(code)}"):
            scan_file(lambda: None, path, ShotSettings(detector="none"))
        _fail_once(patch, code)
        with pytest.raises(AttemptFailed, match=rf"clip\.mkv cannot be read: {os.strerror(code)}"):
            DECODER.read(path, pts[-1:])
    assert len(DECODER.read(path, pts)) == 12


def test_a_file_that_ends_too_early_is_damaged_though_ffmpeg_calls_it_an_input_error(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "clip.mkv", np.zeros((3, 64, 64, 3), np.uint8), codec="ffv1").read_bytes()
    path = tmp_path / "short.mkv"
    path.write_bytes(whole[:100])
    with pytest.raises(MediaError, match=r"short\.mkv cannot be decoded: Input/output error"):
        probe(str(path))


def test_a_codec_that_ffmpeg_does_not_know_is_the_files_own_error(h264: Path, tmp_path: Path) -> None:
    path = tmp_path / "codec.mp4"
    path.write_bytes(h264.read_bytes().replace(b"avc1", b"zzzz"))
    for read in (probe, read_video):
        with pytest.raises(MediaError, match=r"codec\.mp4 has video in a codec that FFmpeg does not know"):
            read(str(path))


@pytest.mark.parametrize("backend", sorted(DECODERS.keys() - {"pyav"}))
def test_other_backends_are_asked_twice_before_a_file_counts_as_damaged(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_video(tmp_path / "clip.mkv", np.zeros((3, 64, 64, 3), np.uint8), codec="ffv1"))
    answers = [MediaError(f"{path}: it counts 1 frame, FFmpeg 3"), np.zeros((1, 64, 64, 3), np.uint8)]

    def read(*_: object) -> Frames:
        answer = answers.pop(0)
        if isinstance(answer, MediaError):
            raise answer
        return answer

    decoder = DECODERS[backend].__new__(DECODERS[backend])
    monkeypatch.setattr(decoder, "_read", read)
    assert decoder.read(path, [0]).shape == (1, 64, 64, 3)
    answers[:] = [MediaError("once"), MediaError("twice")]
    with pytest.raises(MediaError, match="twice"):
        decoder.read(path, [0])
    answers[:] = [MediaError("once")]
    with pytest.raises(AttemptFailed, match=r"gone\.mkv cannot be read"):
        decoder.read(str(tmp_path / "gone.mkv"), [0])
