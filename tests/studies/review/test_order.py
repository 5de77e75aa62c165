"""Balanced orders, counted."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from cinesynth.studies.review.order import places_of_checks, sequences, williams_row


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 11, 24])
def test_a_williams_square_has_each_treatment_once_a_place_and_once_after_each_other(n: int) -> None:
    each = 1 if n % 2 == 0 else 2
    rows = [williams_row(row, n) for row in range(n * each)]
    assert Counter(Counter((place, t) for row in rows for place, t in enumerate(row)).values()) == {each: n * n}
    assert Counter(Counter(pair for row in rows for pair in itertools.pairwise(row)).values()) == {each: n * (n - 1)}


def test_the_square_of_four_is_the_one_of_the_books() -> None:
    """Williams 1949; e.g. Jones and Kenward, Design and Analysis of Cross-Over Trials, 3rd ed., section 4.2.2."""
    assert [williams_row(row, 4) for row in range(4)] == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]


@pytest.mark.parametrize(
    ("windows", "conditions", "times"), [(24, 1, 1), (24, 3, 1), (7, 3, 3), (6, 6, 2), (5, 3, 2), (2, 1, 1)]
)
@pytest.mark.parametrize("taken", [1, 3, 8, 12])
def test_windows_conditions_and_sides_are_balanced_however_many_raters_come(
    windows: int, conditions: int, times: int, taken: int
) -> None:
    shown = sequences(12, windows, conditions, times, seed=5)[:taken]
    lean: Counter[tuple[int, int]] = Counter()
    for sequence in shown:
        assert Counter(s.window for s in sequence) == dict.fromkeys(range(windows), times)
        assert len({(s.window, s.condition) for s in sequence}) == len(sequence), "each time in another condition"
        sides = Counter((s.condition, s.swapped) for s in sequence)
        for condition in range(conditions):
            assert abs(sides[condition, False] - sides[condition, True]) <= 2, "balanced within the rater"
        for s in sequence:
            lean[s.window, s.condition] += -1 if s.swapped else 1
        if windows > 2:
            assert all(a.window != b.window for a, b in itertools.pairwise(sequence))
    assert max(abs(value) for value in lean.values()) <= 1, "balanced over the raters"
    seen = Counter((s.window, s.condition) for sequence in shown for s in sequence)
    counts = [seen[w, c] for w in range(windows) for c in range(conditions)]
    assert max(counts) - min(counts) <= 1


def test_the_same_seed_gives_the_same_order_and_another_one_another() -> None:
    assert sequences(4, 9, 3, 1, seed=1) == sequences(4, 9, 3, 1, seed=1) != sequences(4, 9, 3, 1, seed=2)


def test_checks_are_spread_and_never_first() -> None:
    for seed in range(50):
        places = places_of_checks(24, 4, random.Random(seed))
        assert all(1 <= place <= 24 for place in places)
        assert all(low < high for low, high in itertools.pairwise(places))
        assert [place > 12 for place in places] == [False, False, True, True]
    assert places_of_checks(24, 0, random.Random(0)) == []
    assert len(places_of_checks(2, 6, random.Random(0))) == 6
