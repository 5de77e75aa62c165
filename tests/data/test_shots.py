"""Cuts, on real film and on clips whose cuts are known."""

from __future__ import annotations

from cinesynth.config import ShotSettings
from cinesynth.data.footage import PyAVDecoder
from cinesynth.data.samples import sample_footage
from cinesynth.data.screenplay import draw_screenplay
from cinesynth.data.scripted import scripted_clip
from cinesynth.data.shots import SCAN_WIDTH, detect_cuts, split_shots


def _cuts(name: str, **settings: object) -> list[int]:
    frames = (frame for _, frame in PyAVDecoder().scan(str(sample_footage() / name), SCAN_WIDTH))
    return detect_cuts(frames, ShotSettings.model_validate(settings))


def test_the_five_cuts_of_street_film_are_found() -> None:
    assert _cuts("bikes.mp4") == [30, 76, 137, 187, 242]  # the last frames before them are 29, 75, 136, 186, 241


def test_no_cut_is_found_in_a_single_shot() -> None:
    assert _cuts("bigbuckbunny.mp4") == []


def test_detector_none_finds_no_cut() -> None:
    assert _cuts("bikes.mp4", detector="none") == []


def test_known_cuts_of_scripted_clips_are_found() -> None:
    """None is missed, and F1 is at least 0.95, under light that pulses in all colours."""
    known = found = right = 0
    for seed in (0, 1):
        with_cuts = [i for i in range(60) if len(draw_screenplay(seed, i).shots) > 1]
        for index in [*with_cuts, 0, 1]:
            clip = scripted_clip(seed, index, height=48, width=72)
            cuts = detect_cuts(clip.frames, ShotSettings())
            assert set(clip.cuts) <= set(cuts), clip.caption
            known, found, right = known + len(clip.cuts), found + len(cuts), right + len(clip.cuts)
    assert known > 20
    assert 2 * right / (known + found) >= 0.95


def test_shots_partition_the_timestamps() -> None:
    shots = split_shots([0, 10, 20, 35, 45], [2, 3])
    assert [(s.start_pts, s.end_pts, s.pts) for s in shots] == [
        (0, 20, (0, 10)),
        (20, 35, (20,)),
        (35, 55, (35, 45)),
    ]
    assert split_shots([], []) == []
