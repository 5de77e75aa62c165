"""The home domain: windows that caption and first frame decide, photographs that are what they claim, and its moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cinesynth.errors import MediaError
from cinesynth.nano.domain import FRAMES, film_look_windows, held_out_windows, rendered, training_windows
from cinesynth.nano.motion import camera_move, camera_speeds
from cinesynth.scripted import photographs
from cinesynth.scripted.film_look import film_look
from cinesynth.scripted.photographs import HELD_OUT, PHOTOGRAPHS, TRAINED_ON, load_photograph
from cinesynth.scripted.rendering import PAN_SPEED
from cinesynth.scripted.vocabulary import CAMERAS, LIGHTS


def test_held_out_windows_share_no_photograph_and_no_screenplay_with_training() -> None:
    train, held_out, film = training_windows(400), held_out_windows(200), film_look_windows(100)
    textures = [{w.shot.texture for w in part} & set(PHOTOGRAPHS) for part in (train, held_out, film)]
    assert textures == [set(TRAINED_ON), set(HELD_OUT), set(HELD_OUT)]
    seeds = [{w.shot.texture_seed for w in part} for part in (train, held_out, film)]
    assert not seeds[0] & (seeds[1] | seeds[2])
    assert 0.4 < np.mean([w.shot.texture in PHOTOGRAPHS for w in train]) < 0.6
    assert {w.shot.camera for w in train} == set(CAMERAS)
    assert {w.shot.light for w in train} == set(LIGHTS)
    assert 0.08 < np.mean([w.shot.light == "steady" for w in train]) < 0.18


def test_held_out_photographs_come_from_python_packages_and_every_licence_allows_a_derived_model() -> None:
    assert all(PHOTOGRAPHS[name].source.startswith("package:") for name in HELD_OUT)
    allowed = {"CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "public domain"}
    assert {photograph.licence for photograph in PHOTOGRAPHS.values()} <= allowed
    for name in HELD_OUT:
        assert load_photograph(name).shape[2] == 3


def test_a_photograph_that_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(photographs.PHOTOGRAPHS, "coffee", replace(PHOTOGRAPHS["coffee"], sha256="0" * 64))
    load_photograph.cache_clear()
    with pytest.raises(MediaError, match=r"photograph 'coffee'.*expected 0000"):
        load_photograph("coffee")


def test_a_missing_debian_package_names_itself_and_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MediaError, match=r"lomiri-wallpapers-16\.04.*no apt-get here"):
        load_photograph("peaks")


def test_rendering_goes_on_where_it_stopped(tmp_path: Path) -> None:
    windows = held_out_windows(3)
    whole = np.array(rendered(windows, tmp_path, processes=1))
    assert whole.shape == (3, FRAMES, 64, 96, 3)
    done = next(tmp_path.glob("windows-*.npy"))
    part = done.with_name(done.name.replace("windows-", ".part-"))
    done.rename(part)
    pixels = np.lib.format.open_memmap(part, mode="r+")
    pixels[1], pixels[2, 0] = 0, 7  # the second was lost; the third is there, and is not rendered again
    pixels.flush()
    again = rendered(windows, tmp_path, processes=1)
    assert np.array_equal(again[:2], whole[:2])
    assert (again[2, 0] == 7).all()


@pytest.mark.parametrize("camera", [name for name in CAMERAS if name != "static"])
def test_flow_finds_the_camera_move(camera: str) -> None:
    window = next(w for w in held_out_windows(20) if w.shot.texture == "pavilion")
    shot = replace(window.shot, camera=camera, shape=None, light="steady", motion="still")
    assert camera_move(replace(window, shot=shot).render()) == camera


def test_flow_measures_speeds_in_view_heights_and_finds_none_in_a_still_picture() -> None:
    window = next(w for w in held_out_windows(20) if w.shot.texture == "pavilion")
    shot = replace(window.shot, camera="pan right", shape=None, light="steady", motion="still")
    frames = replace(window, shot=shot).render()
    assert camera_speeds(frames)["pan"] == pytest.approx(PAN_SPEED, rel=0.1)
    assert camera_move(np.repeat(frames[:1], FRAMES, axis=0)) == "static"
    assert camera_move(np.zeros_like(frames)) == "static"


def test_the_film_look_is_graded_letterboxed_and_pushes_in_without_saying_so() -> None:
    window = next(w for w in film_look_windows(20) if w.shot.texture in PHOTOGRAPHS)
    assert window.caption.startswith("film look, ")
    assert "camera" not in window.caption
    frames = window.render()
    plain = replace(window, shot=replace(window.shot, look=None)).render()
    assert not frames[:, :8].any()
    assert not frames[:, -8:].any()
    assert np.abs(frames[:, 8:-8].astype(int) - plain[:, 8:-8]).mean() > 8
    assert np.array_equal(frames, window.render())


def test_the_grade_turns_shadows_teal_and_highlights_orange() -> None:
    frames = np.full((2, 32, 48, 3), 30, np.uint8)
    frames[:, :, 24:] = 220
    red, _, blue = film_look(frames, seed=0)[:, 4:-4].astype(float).mean(axis=(0, 1)).T
    assert (blue - red)[:20].mean() > 10
    assert (red - blue)[28:].mean() > 15


def test_a_still_picture_that_knows_the_light_is_the_clip_where_nothing_moves() -> None:
    window = held_out_windows(1)[0]
    shot = replace(window.shot, camera="static", shape=None, motion="still", light="red")
    frames = replace(window, shot=shot).render()
    still = replace(window, shot=shot).still(frames[0])
    assert np.array_equal(still[0], frames[0])
    assert np.abs(still.astype(int) - frames).mean() < 0.5
    assert np.abs(frames[:1].astype(int) - frames).mean() > 5
