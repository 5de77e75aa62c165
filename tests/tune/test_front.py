"""The front, its hypervolume, and which point is recommended."""

from __future__ import annotations

import random

import pytest

from tune.front import front, hypervolume, knee, recommend

POINTS = {"a": (1.0, 5.0), "b": (2.0, 2.0), "c": (5.0, 1.0), "d": (3.0, 3.0), "e": (2.0, 2.5)}


def test_the_front_is_what_no_other_beats() -> None:
    assert front(POINTS) == ["a", "b", "c"]
    draw = random.Random(0)
    for _ in range(100):
        points = {str(i): (draw.randint(0, 9), draw.randint(0, 9)) for i in range(12)}
        found = front(points)
        for name, (x, y) in points.items():
            beaten = any((u <= x and v < y) or (u < x and v <= y) for u, v in points.values())
            assert beaten == (points[name] not in [points[n] for n in found])


def test_the_hypervolume_is_the_area_below_the_reference() -> None:
    assert hypervolume([], (6, 6)) == 0
    assert hypervolume([(1, 5), (2, 2), (5, 1)], (6, 6)) == pytest.approx(1 * 5 + 3 * 4 + 1 * 1)
    assert hypervolume([(2, 2), (3, 3), (7, 0), (0, 7)], (6, 6)) == pytest.approx(16)


def test_the_knee_lies_farthest_in_the_corner() -> None:
    assert knee(POINTS) == "b"
    assert knee({"only": (1.0, 1.0)}) == "only"


def test_within_the_noise_the_smaller_rank_is_taken() -> None:
    ranks = {"a": 64, "b": 32, "c": 4, "d": 4, "e": 16}
    assert recommend(POINTS, ranks, (0.0, 0.0)) == "b"
    assert recommend(POINTS, ranks, (0.1, 0.6)) == "e"
    assert recommend(POINTS, ranks, (1.0, 1.0)) == "d"
