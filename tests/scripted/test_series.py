"""Scripted clips: pure functions of (seed, index), whose captions and cuts are true."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cinesynth.data.video import read_video
from cinesynth.scripted.__main__ import main
from cinesynth.scripted.look import SHARP_LENS
from cinesynth.scripted.rendering import camera_at, object_at, render_shot
from cinesynth.scripted.screenplay import draw_screenplay, sample_captions
from cinesynth.scripted.series import scripted_clip, write_scripted_clips
from cinesynth.scripted.vocabulary import CAMERAS, COLOURS, MOTIONS, TEXTURES


def test_a_clip_is_a_pure_function_of_seed_and_index() -> None:
    first, again, other = scripted_clip(3, 5), scripted_clip(3, 5), scripted_clip(4, 5)
    assert np.array_equal(first.frames, again.frames)
    assert first.caption == again.caption
    assert other.caption != first.caption
    assert first.frames.shape[1:] == (96, 144, 3)
    assert first.frames.dtype == np.uint8


def test_captions_come_without_rendering_and_are_those_of_the_clips() -> None:
    captions = sample_captions(20, seed=9)
    assert captions[7] == scripted_clip(9, 7, height=32, width=48).caption
    assert len(set(captions)) == 20


def test_every_word_of_the_script_is_drawn_and_lengths_and_cuts_are_as_promised() -> None:
    plays = [draw_screenplay(1, i) for i in range(600)]
    shots = [shot for play in plays for shot in play.shots]
    assert {s.texture for s in shots} == set(TEXTURES)
    assert {s.motion for s in shots} == set(MOTIONS)
    assert {s.camera for s in shots} == set(CAMERAS)
    assert all(3.5 <= sum(s.duration for s in play.shots) <= 5.0 for play in plays)
    with_cuts = sum(len(play.shots) > 1 for play in plays) / len(plays)
    assert 0.12 < with_cuts < 0.21  # one in six: within three standard deviations
    assert min(s.duration for s in shots) > 1.25  # a window of 17 frames at 16 fps fits


def _shift(shot_camera: str) -> tuple[float, float]:
    """Mean displacement of the picture between two frames, by phase correlation."""
    shot = replace(draw_screenplay(0, 0).shots[0], shape=None, camera=shot_camera, light="steady", texture="clouds")
    frames = render_shot(shot, 12, 24, 96, 144, lens=SHARP_LENS)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in frames]
    (dx, dy), _ = cv2.phaseCorrelate(grey[0], grey[-1], cv2.createHanningWindow((144, 96), cv2.CV_32F))
    return dx, dy


@pytest.mark.parametrize(
    ("camera", "axis", "sign"),
    [("pan right", 0, -1), ("pan left", 0, 1), ("tilt down", 1, -1), ("tilt up", 1, 1)],
)
def test_the_picture_moves_against_the_camera(camera: str, axis: int, sign: int) -> None:
    shift = _shift(camera)
    assert sign * shift[axis] > 2
    assert abs(shift[1 - axis]) < 1


@pytest.mark.parametrize(("camera", "grows"), [("push in", True), ("pull out", False)])
def test_a_push_in_enlarges_the_object(camera: str, grows: bool) -> None:
    shot = replace(draw_screenplay(0, 1).shots[0], shape="ball", motion="still", camera=camera, light="steady")
    shot = replace(shot, colour="red", texture="gradient", texture_colours=("blue", "teal"), place=(0.0, 0.0))
    frames = render_shot(shot, 60, 24, 96, 144).astype(int)
    red = [int((frame[..., 0] - frame[..., 2] > 40).sum()) for frame in (frames[0], frames[-1])]
    assert (red[1] > 1.2 * red[0]) is grows
    assert min(red) > 100


def test_things_fall_rise_slide_and_circle_as_the_caption_says() -> None:
    shot = draw_screenplay(0, 2).shots[0]

    def path(motion: str) -> np.ndarray:
        moving = replace(shot, motion=motion, duration=4.0)
        return np.array([object_at(moving, t)[:2] for t in np.arange(0, 4, 0.02)])

    assert (np.diff(path("slide right")[:, 0]) > 0).all()
    assert (np.diff(path("slide left")[:, 0]) < 0).all()
    assert (np.diff(path("rise")[:, 1]) < 0).all()
    assert (np.diff(path("sink")[:, 1]) > 0).all()
    circle = path("orbit clockwise") - path("orbit clockwise").mean(0)
    turn = circle[:-1, 0] * circle[1:, 1] - circle[:-1, 1] * circle[1:, 0]
    assert (turn > 0).all()  # y points down, so clockwise is a positive turn
    bounce = path("bounce")[:, 1]
    floor = 0.42 - shot.size / 2
    assert bounce.max() <= floor + 1e-9
    assert bounce.max() > floor - 0.03
    # Between bounces the acceleration is gravity's: the median second difference, in heights per second squared.
    assert np.median(np.diff(bounce, 2)) / 0.02**2 == pytest.approx(3.5, rel=1e-6)


def test_a_roll_turns_the_camera_and_a_still_camera_stays() -> None:
    shot = draw_screenplay(0, 3).shots[0]
    assert (
        camera_at(replace(shot, camera="roll clockwise"), 1.0).roll
        > camera_at(replace(shot, camera="roll clockwise"), 0.0).roll
    )
    still = replace(shot, camera="static", shape=None, light="steady")
    frames = render_shot(still, 8, 24, 32, 48)
    assert (frames == frames[0]).all()


def test_captions_name_colours_that_are_in_the_picture() -> None:
    shot = replace(draw_screenplay(0, 4).shots[0], shape="square", motion="still", camera="static", light="steady")
    shot = replace(shot, size=0.42, place=(0.0, 0.0))
    for colour in ("red", "green", "blue"):
        painted = replace(shot, colour=colour)
        assert colour in painted.caption
        centre = render_shot(painted, 1, 24, 96, 144)[0, 44:52, 68:76].reshape(-1, 3).mean(0)
        assert np.abs(centre - COLOURS[colour]).max() < 30


def test_articles_are_right() -> None:
    text = " ".join(sample_captions(400))
    assert not re.search(r"\ba (?=orange)", text)
    assert not re.search(r"\ban (?!orange)", text)


def test_files_carry_sidecars_and_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = next(i for i in range(50) if len(draw_screenplay(2, i).shots) > 1)
    paths = write_scripted_clips(tmp_path, index + 1, seed=2, height=32, width=48)
    clip = scripted_clip(2, index, height=32, width=48)
    frames, fps = read_video(paths[index])
    assert fps == 24
    assert frames.shape == clip.frames.shape
    assert np.abs(frames.astype(int) - clip.frames).mean() < 6  # H.264 at small size
    sidecar = json.loads(paths[index].with_suffix(".json").read_text())
    assert sidecar["cuts"] == clip.cuts
    assert [round(shot["start_s"] * 24) for shot in sidecar["shots"]] == [0, *clip.cuts]
    assert paths[index].with_suffix(".txt").read_text().strip() == clip.caption

    before = [path.stat().st_mtime_ns for path in paths]
    arguments = ["--out", str(tmp_path), "--seed", "2", "--height", "32", "--width", "48"]
    main([*arguments, "--count", str(index + 1)])
    assert [path.stat().st_mtime_ns for path in paths] == before
    main([*arguments, "--count", "1"])
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["scripted-0000.mp4"]
    assert paths[0].stat().st_mtime_ns != before[0]
    assert "1 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("light", "ratios"),
    [("steady", (1, 1, 1)), ("pulse", (0.29, 0.29, 0.29)), ("red", (1, 0.29, 0.38)), ("golden", (1, 0.71, 0.24))],
)
def test_a_pulse_dims_its_channels_after_half_a_second_and_is_over_after_one(
    light: str, ratios: tuple[float, float, float]
) -> None:
    shot = replace(draw_screenplay(0, 5).shots[0], shape=None, texture="gradient", texture_colours=("gray", "white"))
    frames = render_shot(replace(shot, camera="static", light=light), 17, 16, 32, 48).astype(float)
    means = frames.mean(axis=(1, 2))
    assert means[8] / means[0] == pytest.approx(ratios, abs=0.03)
    assert means[16] == pytest.approx(means[0], abs=1)


def test_light_fades_and_grows_at_its_rate() -> None:
    shot = replace(draw_screenplay(0, 5).shots[0], shape=None, camera="static", texture="gradient")
    for light, factor in (("fade", 0.55), ("brighten", 1.82)):
        frames = render_shot(replace(shot, light=light), 17, 16, 32, 48).astype(float)
        assert frames[16].mean() / frames[0].mean() == pytest.approx(factor, abs=0.03)
