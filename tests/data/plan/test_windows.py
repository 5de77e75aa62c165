"""Windows: resampling, cuts, damage, buckets, names and scores."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

from cinesynth.config import PrepareConfig
from cinesynth.data.config import DecodeSettings, WindowSettings
from cinesynth.data.encode.encode import decode_window
from cinesynth.data.footage.captions import read_captions
from cinesynth.data.footage.packages import sample_footage
from cinesynth.data.footage.sources import Source, fingerprint
from cinesynth.data.plan.windows import cut_windows, place_windows, window_spans
from cinesynth.data.records import Reject, Window
from cinesynth.data.scan.decoder_pyav import PyAVDecoder, scan
from cinesynth.data.scan.scan import Scan, from_row, scan_file, to_row
from cinesynth.data.scan.shots import ShotSpan
from cinesynth.data.video import write_video
from cinesynth.errors import ConfigError
from cinesynth.settings import parse_config
from cinesynth.storage import sha256_file
from tests.data.clips import encode_frames, flip_bytes, write_avi, write_levels, write_two_sizes

CONFIGS = Path(__file__).resolve().parents[3] / "jobs" / "configs"
WHOLE = {"shots": {"detector": "none"}}


def config_of(path: Path, **overrides: Any) -> PrepareConfig:
    window = {"num_frames": 5, "sizes": "32x32", "stride": 5} | overrides.pop("window", {})
    return parse_config(PrepareConfig, {"name": "t", "footage": [{"path": str(path)}], "window": window, **overrides})


def cut(path: Path, config: PrepareConfig, **source: Any) -> tuple[list[Window], list[Reject]]:
    scan = scan_file(lambda: None, str(path), config.shots)
    return cut_windows(
        Source(str(path), "default", **source),
        sha256_file(path),
        fingerprint(str(path)),
        scan,
        read_captions(str(path)),
        config,
    )


def _settings(frames: int | list[int] = 5, stride: int | None = 5, limit: int | None = None) -> WindowSettings:
    return WindowSettings.model_validate(
        {"num_frames": frames, "sizes": "32x32", "stride": stride, "max_per_shot": limit}
    )


def test_24_fps_is_resampled_to_16_by_holding_frames() -> None:
    shot = ShotSpan(0, 24, tuple(range(24)))  # one second, one tick a frame
    # Sample i shows frame floor(1.5 i): the frame that is on the screen at i / 16 s.
    expected = [tuple(int(1.5 * i) for i in range(k, k + 5)) for k in (0, 5, 10)]
    assert window_spans(shot, Fraction(1, 24), _settings()) == (expected, 0)


def test_timestamps_rounded_to_milliseconds_lose_no_frame() -> None:
    pts = tuple(round(1000 * i / 16) for i in range(33))  # a 16 fps Matroska file: 62.5 ms becomes 62 or 63
    spans, _ = window_spans(ShotSpan(0, 2062, pts), Fraction(1, 1000), _settings(frames=33, stride=33))
    assert spans == [pts]


def test_a_variable_rate_keeps_its_timing() -> None:
    # Frames at 0, 100, then a pause until 400 ms; samples at 0, 62.5, 125, 187.5, 250, 312.5, 375, 437.5, 500 ms.
    shot = ShotSpan(1000, 1600, (1000, 1100, 1400))
    assert window_spans(shot, Fraction(1, 1000), _settings(frames=9))[0] == [
        (1000, 1000, 1100, 1100, 1100, 1100, 1100, 1400, 1400)
    ]


def test_windows_end_before_the_next_shot_and_what_the_limit_leaves_out_is_counted() -> None:
    shot = ShotSpan(100, 148, tuple(range(100, 148)))
    assert len(window_spans(shot, Fraction(1, 24), _settings())[0]) == 6  # 32 samples
    spans, more = window_spans(shot, Fraction(1, 24), _settings(limit=2))
    assert (len(spans), more) == (2, 4)
    assert window_spans(ShotSpan(0, 4, (0, 1, 2, 3)), Fraction(1, 24), _settings()) == ([], 0)


def test_a_shot_is_filled_with_long_windows_and_its_rest_with_shorter_ones() -> None:
    assert place_windows(100, _settings([33, 17, 9], stride=None)) == [(0, 33), (33, 33), (66, 33)]
    assert place_windows(60, _settings([33, 17, 9], stride=None)) == [(0, 33), (33, 17), (50, 9)]
    assert place_windows(60, _settings([9, 33], stride=10)) == [(0, 33), (10, 33), (20, 33)]  # overlapping
    assert place_windows(45, _settings([33, 9], stride=None)) == [(0, 33), (33, 9)]
    assert place_windows(4, _settings(5)) == []


def test_no_window_crosses_a_cut_and_short_shots_are_reported(tmp_path: Path) -> None:
    """Brightness jumps between shots of 30, 6 and 24 frames at 24 fps; the middle one is shorter than a window."""
    levels = [
        np.full((48, 64, 3), value, np.uint8) for value, count in ((20, 30), (230, 6), (90, 24)) for _ in range(count)
    ]
    path = write_video(tmp_path / "cut.mkv", np.stack(levels), fps=24, codec="ffv1")
    config = config_of(path, window={"num_frames": 9, "stride": 3})
    windows, rejects = cut(path, config)
    assert [(r.reason, r.detail) for r in rejects] == [
        ("shot_too_short", "shot at 1.25-1.50 s: it holds 4 of the 9 frames that a window needs at 16 fps")
    ]
    assert len({w.shot_id for w in windows}) == 2
    for window in windows:
        frames = PyAVDecoder().read(str(path), window.frame_pts)
        assert len(np.unique(frames)) == 1, "frames of one shot have one brightness"


def test_only_what_lies_between_in_and_out_is_used(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 4000, 40))
    windows, _ = cut(path, config_of(path, **WHOLE), in_s=1.0, out_s=2.0)
    assert windows
    assert min(w.frame_pts[0] for w in windows) == 1000
    assert max(w.frame_pts[-1] for w in windows) < 2000
    windows, rejects = cut(path, config_of(path, **WHOLE), in_s=60.0)
    assert not windows
    assert [(r.reason, r.detail) for r in rejects] == [("shot_too_short", "in_s = 60 lies beyond its end at 4.00 s")]


def test_footage_that_would_be_enlarged_too_much_is_left_out(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "small.mkv", range(0, 2000, 40), size=40)
    windows, rejects = cut(path, config_of(path, window={"sizes": ["64x64", "96x48"]}, **WHOLE))
    assert (windows, [r.reason for r in rejects]) == ([], ["too_small"])
    assert "40x40 would be enlarged more than 1.25 times to" in rejects[0].detail
    larger, _ = cut(path, config_of(path, window={"sizes": ["64x64", "48x48"]}, **WHOLE))
    assert {w.bucket for w in larger} == {"48x48x5"}
    assert {w.scores["upscale"] for w in larger} == {1.2}


def test_black_bars_are_cropped_unless_they_are_to_be_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = np.zeros((40, 96, 96, 3), np.uint8)
    frames[:, 24:72] = rng.integers(60, 255, (48, 96, 3))
    path = write_video(tmp_path / "letterbox.mkv", frames, fps=16, codec="ffv1")
    wide, _ = cut(path, config_of(path, window={"sizes": ["96x48", "64x64"], "max_upscale": 1.5}, **WHOLE))
    assert {w.bucket for w in wide} == {"96x48x5"}
    left, top, width, height = wide[0].box
    assert (top, top + height) == (pytest.approx(25, abs=1.1), pytest.approx(71, abs=1.1))
    assert left + width <= 96
    assert wide[0].scores["bars"] == pytest.approx(0.52, abs=0.03)
    kept, _ = cut(path, config_of(path, window={"sizes": "64x64", "black_bars": "keep"}, **WHOLE))
    assert kept[0].box == (0, 0, 96, 96)


def test_wide_pixels_become_square_ones(tmp_path: Path) -> None:
    """A disc that is stored half as wide as it is high comes out round."""
    x, y = np.meshgrid(np.arange(48) * 2 + 1, np.arange(96) + 0.5)
    disc = np.where(np.hypot(x - 48, y - 48) < 30, 230, 30).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.repeat(disc[..., None], 3, 2), format="rgb24")
    path = encode_frames(tmp_path / "wide.mp4", [frame] * 30, aspect=Fraction(2, 1))
    window = cut(path, config_of(path, window={"sizes": "96x96"}, **WHOLE))[0][0]
    frames, _ = decode_window(window, DecodeSettings(limit_s=60))
    lit = frames[0, ..., 1] > 130
    assert lit.any(axis=0).sum() == pytest.approx(60, abs=3)
    assert lit.any(axis=1).sum() == pytest.approx(60, abs=3)


def test_damaged_windows_are_left_out(tmp_path: Path) -> None:
    clean = sample_footage() / "bikes.mp4"
    path = flip_bytes(clean, tmp_path / "flipped.mp4", count=3, seed=3)
    config = config_of(path, window={"num_frames": 17, "stride": 17})
    whole, _ = cut(clean, config)
    windows, rejects = cut(path, config)
    damaged = [r for r in rejects if r.reason == "damaged"]
    assert windows
    assert len(damaged) > 1
    pixels = {w.start_s: PyAVDecoder().read(str(clean), w.frame_pts).astype(int) for w in whole}
    for window in windows:
        frames = PyAVDecoder().read(str(path), window.frame_pts)
        assert np.abs(frames - pixels[window.start_s]).mean() < 1, "what is left is whole"


def test_windows_of_an_avi_whose_times_were_mended_have_its_frames_one_after_another(tmp_path: Path) -> None:
    pictures = [np.full((64, 64, 3), 3 * i + 10, np.uint8) for i in range(75)]
    path = write_avi(tmp_path / "old.avi", pictures, fps=WindowSettings().fps)
    windows, rejects = cut(path, config_of(path, window={"num_frames": 9, "stride": 9}, **WHOLE))
    assert not rejects
    frames = [frame for w in windows for frame in PyAVDecoder().read(str(path), w.frame_pts)]
    assert [round((float(frame.mean()) - 10) / 3) for frame in frames] == list(range(72))


def test_windows_of_a_damaged_avi_have_whole_frames_one_after_another(tmp_path: Path) -> None:
    pictures = [frame.rgb(320) for frame in islice(scan(str(sample_footage() / "bikes.mp4")), 75)]
    clean = write_avi(tmp_path / "old.avi", pictures, fps=WindowSettings().fps, crf=20)
    path = flip_bytes(clean, tmp_path / "flipped.avi", count=3, seed=7)
    config = config_of(path, window={"num_frames": 9, "stride": 9}, **WHOLE)
    whole = [frame.rgb(640).astype(int) for frame in scan(str(clean))]
    windows, rejects = cut(path, config)
    assert scan_file(lambda: None, str(path), config.shots).info.times == "mended"
    assert windows
    assert {r.reason for r in rejects} == {"damaged"}
    for window in windows:
        frames = PyAVDecoder().read(str(path), window.frame_pts)
        first = round(window.start_s * window.fps)
        assert np.abs(frames - np.stack(whole[first : first + 9])).max() == 0


def test_frames_without_a_time_are_counted(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))
    config = config_of(path, **WHOLE)
    found = replace(scan_file(lambda: None, str(path), config.shots), untimed=3)
    given = Source(str(path), "default"), sha256_file(path), fingerprint(str(path))
    windows, rejects = cut_windows(*given, found, read_captions(str(path)), config)
    assert len(windows) == 6
    expected = "3 frames are left out, as they have no timestamp; write the file anew (ffmpeg)"
    assert rejects == [Reject(str(path), "damaged", expected)]


def test_frames_whose_timestamps_go_back_are_counted(tmp_path: Path) -> None:
    """Two transport streams that were joined byte by byte."""
    frames = [av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * i, np.uint8), format="rgb24") for i in range(30)]
    part = encode_frames(tmp_path / "part.ts", frames).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(part + part)
    windows, rejects = cut(path, config_of(path, **WHOLE))
    assert len(windows) == 4
    (late,) = [r for r in rejects if r.reason == "damaged"]
    assert "30 frames are left out, as their timestamps go back" in late.detail


def test_only_shots_of_the_first_size_are_used(tmp_path: Path) -> None:
    path = write_two_sizes(tmp_path, (48, 96))
    windows, rejects = cut(path, config_of(path, **WHOLE))
    found = scan_file(lambda: None, str(path), config_of(path, **WHOLE).shots)
    change = found.pts[30]
    assert windows
    assert max(w.frame_pts[-1] for w in windows) < change
    assert {w.bucket for w in windows} == {"32x32x5"}
    at = float((change - found.pts[0]) * found.info.time_base)
    assert [r.reason for r in rejects] == ["size_changes"]
    assert (
        f"the picture's size changes at {at:.2f} s, to 96x48; only shots of the first size, 96x64" in rejects[0].detail
    )


def test_where_the_size_changes_the_part_before_is_used(media: Path) -> None:
    path = media / "field" / "size_change" / "grows.ts"
    windows, rejects = cut(path, config_of(path))
    whole = scan_file(lambda: None, str(path), config_of(path).shots)
    (_, width, height), (change, *larger) = whole.sizes
    assert change in [start for _, start in whole.cuts]
    assert not any(whole.damaged), "another size is no damage"
    assert windows
    assert max(w.frame_pts[-1] for w in windows) < whole.pts[change]
    assert [r.reason for r in rejects] == ["size_changes", "damaged"], "two frames there go back in time"
    at = float((whole.pts[change] - whole.pts[0]) * whole.info.time_base)
    expected = f"the picture's size changes at {at:.2f} s, to {larger[0]}x{larger[1]}; only shots of the first size"
    assert f"{expected}, {width}x{height}, are used" in rejects[0].detail


def test_a_ribbon_has_no_motion_and_its_other_scores(media: Path) -> None:
    path = media / "field" / "ribbon" / "ticker_1920x80.mp4"
    windows, rejects = cut(path, config_of(path))
    assert windows
    assert not rejects
    assert all("motion" not in w.scores and {"blur", "luma", "static"} < w.scores.keys() for w in windows)


def test_names_depend_on_content_and_span_alone(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(path, tmp_path / "elsewhere" / "other-name.mkv"))
    ids = [w.window_id for w in cut(path, config_of(path, **WHOLE))[0]]
    assert ids == [w.window_id for w in cut(moved, config_of(path, **WHOLE))[0]]
    assert len(set(ids)) == len(ids) == 6
    for other in ({"sizes": "32x16"}, {"crop_centre": [0, 0], "sizes": "16x32"}):
        assert not set(ids) & {w.window_id for w in cut(path, config_of(path, window=other, **WHOLE))[0]}


def test_groups_are_sources_shots_or_what_list_and_sidecar_say(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))

    def groups(**overrides: Any) -> set[str]:
        source = overrides.pop("source", {})
        return {w.group for w in cut(path, config_of(path, **WHOLE, **overrides), **source)[0]}

    assert groups() == {sha256_file(path)[:16]}
    assert groups(group_by="shot") == {w.shot_id for w in cut(path, config_of(path, **WHOLE))[0]}
    path.with_suffix(".json").write_text('{"group": "scene 12"}')
    assert groups() == {"scene 12"}
    assert groups(source={"group": "listed"}) == {"listed"}


def test_parts_of_one_shot_are_one_group(tmp_path: Path) -> None:
    """Rows of a list that overlap share frames, so their windows may not be divided between splits."""
    levels = [np.full((48, 64, 3), level, np.uint8) for level in (20, 230) for _ in range(64)]
    path = write_video(tmp_path / "two.mkv", np.stack(levels), fps=16, codec="ffv1")
    config = config_of(path, group_by="shot")
    whole = list(dict.fromkeys(w.group for w in cut(path, config)[0]))
    assert whole == [f"{sha256_file(path)[:16]}-{pts}" for pts in (0, 4000)], "as earlier versions named them"
    parts = [cut(path, config, in_s=start, out_s=end)[0] for start, end in ((0.0, 2.5), (1.0, 3.5), (1.5, 6.0))]
    assert [{w.group for w in part} for part in parts] == [{whole[0]}, {whole[0]}, set(whole)]
    assert len({w.shot_id for part in parts for w in part}) == 4


def test_scores_are_of_the_windows_own_frames(tmp_path: Path) -> None:
    """Two seconds that stand still, then two seconds of noise."""
    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(0, 255, (8, 12, 3)), 8, 0), 8, 1).astype(np.uint8)
    moving = np.stack([np.roll(picture, 2 * i, axis=1) for i in range(32)])
    path = write_video(tmp_path / "half.mkv", np.concatenate([np.stack([picture] * 32), moving]), fps=16, codec="ffv1")
    windows, _ = cut(path, config_of(path, window={"num_frames": 17, "stride": 16}, **WHOLE))
    static = [w.scores["static"] for w in windows]
    assert static[0] == 1
    assert static[1:] == [1, 0, 0.0625], "the last sample falls into the last frame's time a second time"
    assert windows[0].scores["motion"] < 0.001
    assert windows[-1].scores["motion"] > 0.05
    assert {"blur", "luma", "clipped", "bars", "interlaced", "upscale"} < windows[0].scores.keys()


@pytest.mark.parametrize(
    ("gap", "frames", "static"),
    [(1500, 3, [1.0]), (125, 24, [0.5])],  # three slides in four seconds; 8 fps, of which each frame shows twice
)
def test_stillness_is_that_of_the_windows_frames(gap: int, frames: int, static: list[float], tmp_path: Path) -> None:
    path = write_levels(tmp_path / "slides.mkv", range(0, gap * frames, gap))
    windows, _ = cut(path, config_of(path, window={"num_frames": 17, "stride": 24}, **WHOLE))
    assert windows
    assert [w.scores["static"] for w in windows][: len(static)] == static


def test_a_scan_is_stored_and_read_back_whole() -> None:
    path = sample_footage() / "bikes.mp4"
    found = scan_file(lambda: None, str(path), config_of(path).shots)
    assert isinstance(found, Scan)
    assert [cut for cut, _ in found.cuts] == [30, 76, 137, 187, 242]
    assert len(found.samples) == 20
    assert from_row(to_row("k", "s", "u", found)) == found
    assert from_row(to_row("k", "s", "u", "cannot be decoded")) is None


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"sizes": "480"}, "is a table .480p, 720p. or WIDTHxHEIGHT"),
        ({"sizes": ["100x64"]}, "multiples of 16"),
        ({"sizes": []}, "at least 1"),
        ({"num_frames": [33, 34]}, r"num_frames\.1 = 34: must be 4n\+1"),
        ({"crop_centre": [0.5, 1.5]}, "less than or equal to 1"),
        ({"max_upscale": 0.5}, "greater than or equal to 1"),
    ],
)
def test_windows_that_cannot_be_are_refused(window: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(Path("x"), window=window)


def test_shipped_configurations_parse() -> None:
    paths = sorted(CONFIGS.glob("*/prepare.yaml"))
    assert len(paths) >= 2
    for path in paths:
        parse_config(PrepareConfig, yaml.safe_load(path.read_text()), where=str(path))
