"""The front, its hypervolume, and which point is recommended."""

from __future__ import annotations

import random

import pytest

from tune.front import beats, front, hypervolume, knee, recommend

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


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_large_gain_is_not_given_up_for_a_difference_within_the_noise(names: tuple[str, str]) -> None:
    baseline, trial = names
    values = {baseline: (20.0, 0.23), trial: (5.0, 0.2301)}
    assert recommend(values, {baseline: 8, trial: 8}, (1.0, 0.002)) == trial
    assert recommend(values, {baseline: 4, trial: 8}, (1.0, 0.002)) == trial  # it is not near, however small its rank


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_two_points_that_are_worth_different_things_the_larger_gain_is_taken(names: tuple[str, str]) -> None:
    one, other = names
    ranks = {one: 8, other: 8}
    assert recommend({one: (20.0, 0.23), other: (5.0, 0.25)}, ranks, (1.0, 0.002)) == other  # 15 of noise against 10
    assert recommend({one: (20.0, 0.23), other: (5.0, 0.27)}, ranks, (1.0, 0.002)) == one  # 15 against 20
    assert recommend({one: (20.0, 0.23), other: (5.0, 0.24)}, ranks, (0.0, 0.0)) == other  # 120% against 4%
    assert knee({one: (1.0, 2.0), other: (2.0, 1.0)}) == one  # nothing but the order of the objectives


def test_of_small_ranks_near_the_knee_the_scale_of_an_objective_does_not_choose() -> None:
    values = {"knee": (100.0, 0.1), "c": (101.0, 0.11), "d": (100.9, 0.19)}
    assert recommend(values, {"knee": 8, "c": 4, "d": 4}, (2.0, 0.1)) == "c"


def test_what_is_recommended_is_beaten_by_none_beyond_the_noise() -> None:
    draw = random.Random(0)
    for _ in range(300):
        points = {str(i): (float(draw.randint(0, 12)), float(draw.randint(0, 12))) for i in range(9)}
        noise = draw.choice([0.0, 1.0, 2.5]), draw.choice([0.0, 1.0, 2.5])
        taken = recommend(points, {name: draw.choice([4, 8]) for name in points}, noise)
        assert not any(beats(point, points[taken], noise) for point in points.values())
