"""Looks and lengths: two worlds that differ in more than a grade, long shots that move to their end, and old series."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.search import find_sources
from cinesynth.data.video import inspect_video
from cinesynth.errors import ConfigError
from cinesynth.scripted.__main__ import main
from cinesynth.scripted.looks import LOOKS
from cinesynth.scripted.photographs import HELD_OUT
from cinesynth.scripted.rendering import PAN_SPEED, camera_at, object_at, render_shot
from cinesynth.scripted.screenplay import Shot, draw_screenplay, sample_captions
from cinesynth.scripted.series import scripted_clip, write_scripted_clips
from cinesynth.scripted.vocabulary import LOOK_NAMES, VOCABULARIES

OLD_SERIES = Path(__file__).parent.parent / "fixtures" / "scripted_series_4.npz"
WORLDS = ("historical", "sci-fi")


def test_old_series_are_what_they_were() -> None:
    """Thumbnails of frames 0, 20, ... 80 of 12 clips, made before there were looks.

    Another processor may round otherwise, so one level more or less is let pass.
    """
    old = np.load(OLD_SERIES)["thumbnails"]
    for index, thumbnails in enumerate(old):
        photographs, look = HELD_OUT if index % 2 else (), "film" if index % 3 == 2 else None
        frames = scripted_clip(21, index, 48, 72, photographs=photographs, look=look).frames
        for number, thumbnail in enumerate(thumbnails):
            now = cv2.resize(frames[20 * number], (12, 8), interpolation=cv2.INTER_AREA)
            assert np.abs(now.astype(int) - thumbnail).max() <= 1, (index, number)


def test_old_captions_are_what_they_were() -> None:
    packaged = ("astronaut", "cat", "galaxies", "retina", "rabbit")
    captions = [sample_captions(400, seed, photographs) for seed in (0, 5) for photographs in ((), packaged)]
    digest = hashlib.sha256(json.dumps(captions).encode()).hexdigest()
    assert digest == "d23c3fa817c7f0b154b73ffa4c21746e5d1bb6371396828b2d411f778af665e6"


@pytest.mark.parametrize("look", WORLDS)
def test_a_look_is_a_pure_function_of_seed_and_index(look: str) -> None:
    first, again = (scripted_clip(3, 5, 32, 48, look=look) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    assert first.caption == again.caption == sample_captions(6, 3, look=look)[5]
    assert scripted_clip(4, 5, 32, 48, look=look).caption != first.caption


@pytest.mark.parametrize(("look", "words"), [("historical", "historical drama"), ("sci-fi", "science fiction")])
def test_every_word_of_a_look_is_drawn_and_every_caption_names_it(look: str, words: str) -> None:
    shots = [shot for i in range(800) for shot in draw_screenplay(1, i, look=look).shots]
    vocabulary = VOCABULARIES[look]
    assert {s.texture for s in shots} == set(vocabulary.textures)
    assert {s.shape for s in shots} == {None, *vocabulary.shapes}
    assert {s.motion for s in shots} == set(vocabulary.motions)
    assert {s.camera for s in shots} == set(vocabulary.cameras)
    assert {s.light for s in shots} == set(vocabulary.lights)
    assert all(s.caption.endswith(f", {words}") for s in shots)
    assert not {(s.shape, s.motion) for s in shots} & vocabulary.never
    assert {s.caption.split()[0] for s in shots if s.shape} == {"a", "an"}


def test_the_worlds_share_no_word_for_what_is_seen() -> None:
    historical, sci_fi = (VOCABULARIES[look] for look in WORLDS)
    for one, other in (
        (historical.colours, sci_fi.colours),
        (historical.textures, sci_fi.textures),
        (historical.shapes, sci_fi.shapes),
    ):
        assert not set(one) & set(other)


@pytest.mark.parametrize("look", WORLDS)
def test_each_set_and_each_thing_is_a_picture_of_its_own(look: str) -> None:
    vocabulary = VOCABULARIES[look]
    plain = replace(_bare(look), light="steady")
    sets = [render_shot(replace(plain, texture=name), 1, 24, 32, 48)[0].astype(int) for name in vocabulary.textures]
    for i, picture in enumerate(sets):
        assert picture.std() > 5
        assert all(np.abs(picture - other).mean() > 4 for other in sets[:i])
    still = replace(plain, motion="still", place=(0.0, 0.0), size=0.5)
    things = [render_shot(replace(still, shape=name), 1, 24, 32, 48)[0].astype(int) for name in vocabulary.shapes]
    empty = render_shot(still, 1, 24, 32, 48)[0]
    for i, picture in enumerate(things):
        assert np.abs(picture - empty).max() > 40
        assert all(np.abs(picture - other).max() > 30 for other in things[:i])


def _bare(look: str | None) -> Shot:
    return replace(draw_screenplay(0, 0, look=look).shots[0], shape=None, motion="still", camera="static")


def _measured(look: str) -> np.ndarray:
    """Of 12 clips: red minus blue, saturation (0..255), and brightness, as means of frames a second apart."""
    frames = np.concatenate([scripted_clip(7, index, 32, 48, fps=1, look=look).frames for index in range(12)])
    hsv = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in frames])
    red, _, blue = frames.reshape(-1, 3).mean(0)
    return np.array([red - blue, hsv[..., 1].mean(), frames.mean()])


def test_the_historical_look_is_warm_and_pale_and_sci_fi_cold_and_vivid() -> None:
    historical, sci_fi = _measured("historical"), _measured("sci-fi")
    assert historical[0] > 20
    assert sci_fi[0] < -20
    assert sci_fi[1] > historical[1] + 40


def test_the_grade_alone_turns_grey_to_sepia_or_to_blue() -> None:
    grey = np.full((4, 48, 72, 3), 110, np.uint8)
    means = []
    for look in WORLDS:
        finish = LOOKS[look].finish
        assert finish is not None
        means.append(finish(grey, 5, 24).reshape(-1, 3).mean(0))
    (red, _, blue), (red_of_screen, _, blue_of_screen) = means
    assert red > blue + 15
    assert blue_of_screen > red_of_screen + 15


@pytest.mark.parametrize(("look", "pace"), [("historical", 0.5), ("sci-fi", 1.75), (None, 1.0)])
def test_the_camera_has_the_pace_of_its_look(look: str | None, pace: float) -> None:
    shot = replace(_bare(look), camera="pan right", duration=4.0)
    assert camera_at(shot, 3.0).x - camera_at(shot, 2.0).x == pytest.approx(pace * PAN_SPEED)
    texture = next(iter(HELD_OUT))
    frames = render_shot(replace(shot, texture=texture, light="steady"), 9, 24, 96, 144)
    grey = [cv2.cvtColor(frame[16:-16], cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in (frames[0], frames[8])]
    (dx, _), _ = cv2.phaseCorrelate(*grey, cv2.createHanningWindow((144, 64), cv2.CV_32F))
    assert -dx / 96 == pytest.approx(pace * PAN_SPEED / 3, rel=0.25)


def test_grain_and_screen_are_never_still_and_the_same_each_time() -> None:
    for look in WORLDS:
        shot = replace(_bare(look), light="steady")
        frames = render_shot(shot, 3, 24, 32, 48)
        assert (frames[0] != frames[1]).mean() > 0.05
        assert np.array_equal(frames, render_shot(shot, 3, 24, 32, 48))


@pytest.mark.parametrize("look", [None, *LOOK_NAMES])
def test_a_long_shot_is_one_take_that_moves_to_its_end(look: str | None) -> None:
    for index in range(4):
        clip = scripted_clip(2, index, 32, 48, fps=16, look=look, seconds=8.2)
        assert len(clip.frames) == 131 >= 129
        assert clip.cuts == []
        assert clip.shot_captions == [clip.caption]
        small = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in clip.frames]).astype(int)
        moved = np.abs(small[8:] - small[:-8]).mean(axis=(1, 2, 3))  # within half a second
        assert min(moved[start : start + 41].max() for start in (0, 41, 82)) > 1, clip.caption
        assert clip.frames[-1].mean() > 8, "no long shot ends in the dark"


@pytest.mark.parametrize("look", [None, "historical", "sci-fi"])
def test_a_long_shot_makes_the_way_of_one_of_five_seconds_and_stays_in_its_world(look: str | None) -> None:
    for index in range(60):
        shot = draw_screenplay(0, index, look=look, seconds=20).shots[0]
        short = replace(shot, duration=5.0)
        ends = [(camera_at(s, 0.0), camera_at(s, s.duration)) for s in (shot, short)]
        for long_end, short_end in zip(*ends, strict=True):
            assert long_end.matrix(96, 144) == pytest.approx(short_end.matrix(96, 144))
            assert abs(long_end.x) + 0.75 / long_end.zoom <= 2.0 + 1e-9
        assert shot.light not in ("fade", "brighten")


def test_in_sci_fi_the_camera_follows_and_the_thing_stays_in_view() -> None:
    shot = replace(_bare("sci-fi"), shape="drone", motion="hover", camera="pan right", duration=8.0)
    for t in np.linspace(0, 8, 30):
        x, y, _ = object_at(shot, t)
        view = camera_at(shot, t)
        assert abs(x - view.x) < 0.3
        assert abs(y - view.y) < 0.3


def test_a_length_or_look_that_is_none_is_refused_and_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"look = 'western': there is film, historical, sci-fi"):
        draw_screenplay(0, 0, look="western")
    for seconds in (0.5, 61.0):
        with pytest.raises(ConfigError, match=r"a scripted clip has 1 to 60"):
            draw_screenplay(0, 0, seconds=seconds)


def _written(folder: Path, arguments: Sequence[str]) -> list[dict[str, object]]:
    main(["--out", str(folder), "--count", "2", "--height", "32", "--width", "48", *arguments])
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_the_command_writes_a_domain_that_prepare_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    footage = []
    for look in WORLDS:
        folder = tmp_path / look
        sidecars = _written(folder, ["--look", look, "--seconds", "8.2"])
        assert [s["domain"] for s in sidecars] == [look, look]
        assert [s["group"] for s in sidecars] == [f"{look}-0-0", f"{look}-0-1"]
        assert f"{{path: {folder}, domain: {look}}}" in capsys.readouterr().out
        facts = inspect_video(folder / "scripted-0000.mp4")
        assert (facts.num_frames, facts.width, facts.height) == (197, 48, 32)
        footage.append(FootageSource(path=str(folder), domain=look))
    sources, rejects = find_sources(footage)
    assert [source.domain for source in sources] == ["historical", "historical", "sci-fi", "sci-fi"]
    assert rejects == []


def test_the_film_look_keeps_the_groups_of_the_plain_world(tmp_path: Path) -> None:
    assert [s["group"] for s in _written(tmp_path, ["--look", "film"])] == ["scripted-0-0", "scripted-0-1"]
    assert [s["domain"] for s in _written(tmp_path, ["--look", "film"])] == ["film-look", "film-look"]


def test_a_folder_of_another_look_or_length_is_written_anew(tmp_path: Path) -> None:
    def frames(**given: object) -> int:
        (path,) = write_scripted_clips(tmp_path, 1, 0, 32, 48, **given)  # type: ignore[arg-type]
        return inspect_video(path).num_frames

    assert frames(look="historical") == 107
    assert frames(look="historical", seconds=2.0) == 48
    assert frames(look="sci-fi", seconds=2.0) == 48
    assert "science fiction" in (tmp_path / "scripted-0000.txt").read_text()


def test_each_look_has_a_vocabulary_and_painters() -> None:
    assert set(LOOKS) == set(VOCABULARIES)
