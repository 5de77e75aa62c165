"""Segments of long shots: where they lie, and how they are joined."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cinesynth.config import ExpansionSettings
from cinesynth.errors import ConfigError
from cinesynth.generate.expansion import Segment, join, segments_of
from cinesynth.settings import parse_config
from cinesynth.wan.family import WAN21_I2V


@pytest.mark.parametrize(
    ("frames", "most", "overlap", "expected"),
    [
        (33, 81, 4, [(0, 33)]),
        (81, 81, 4, [(0, 81)]),
        (161, 81, 0, [(0, 81), (80, 81)]),
        (101, 81, 0, [(0, 81), (80, 21)]),
        (25, 17, 4, [(0, 17), (12, 13)]),
        (29, 17, 4, [(0, 17), (12, 17)]),
        (33, 17, 4, [(0, 17), (12, 17), (24, 9)]),
        (30, 17, 0, [(0, 17), (16, 17)]),
    ],
)
def test_segments_cover_a_shot(frames: int, most: int, overlap: int, expected: list[tuple[int, int]]) -> None:
    assert [(s.start, s.frames) for s in segments_of(WAN21_I2V, frames, most, overlap)] == expected


def test_every_shot_is_covered_by_lengths_of_the_family() -> None:
    for most in (9, 17, 33):
        for overlap in (0, 1, 4, 7):
            for frames in range(5, 120, 4):
                found = segments_of(WAN21_I2V, frames, most, overlap)
                assert found[-1].start + found[-1].frames >= frames
                assert all(s.frames <= most and WAN21_I2V.takes_frames(s.frames) for s in found)
                for before, after in pairwise(found):
                    assert before.start + before.frames - 1 - after.start == overlap
                if len(found) > 1:  # without the last one something is missing
                    assert found[-2].start + found[-2].frames < frames


def test_shared_frames_go_from_one_segment_to_the_next() -> None:
    fine = 40 * (np.indices((32, 32)).sum(axis=0) % 2 * 2 - 1)  # a chessboard, of which nothing is smooth
    parts = [np.full((9, 32, 32, 3), 100, np.uint8), np.repeat((100 + fine[..., None]).astype(np.uint8), 3, 2)[None]]
    parts[1] = np.repeat(parts[1], 9, axis=0)
    whole = join(parts, [Segment(0, 9), Segment(4, 9)], 11)
    assert whole[:, 16, 17, 0].tolist() == pytest.approx([100] * 5 + [110, 120, 130, 140, 140, 140], abs=1)
    one = join(parts, [Segment(0, 9), Segment(8, 9)], 17)
    assert one[:, 16, 17, 0].tolist() == pytest.approx([100] * 9 + [140] * 8, abs=1)


@pytest.mark.parametrize("overlap", [0, 4])
def test_a_segment_is_brought_to_the_level_of_the_one_before(overlap: int) -> None:
    """What differs smoothly is no movement: a brightness that jumps, or a shade that comes over one side."""
    shade = np.linspace(0, 30, 96)[None, None, :, None]
    still = np.random.default_rng(0).integers(80, 160, (1, 64, 96, 3)) + np.zeros((17, 1, 1, 1), int)
    darker = np.rint(still - 20 - shade).astype(np.uint8)
    whole = join([still.astype(np.uint8), darker], [Segment(0, 17), Segment(16 - overlap, 17)], 33 - overlap)
    off = np.abs(whole.astype(int) - still[:1])
    assert off.mean() < 2
    assert off[:, :, 16:-16].max() <= 4, "at the borders a Gaussian cannot follow a shade"


def test_an_overlap_that_leaves_nothing_new_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap 16 leaves nothing new in a segment of 17 frames"):
        parse_config(ExpansionSettings, {"segment_frames": 17, "overlap": 16})
