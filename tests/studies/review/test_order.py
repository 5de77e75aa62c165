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


DESIGNS = [(4, 1, 1), (4, 2, 2), (4, 3, 3), (5, 3, 2), (6, 4, 2), (7, 6, 4), (3, 3, 3), (2, 2, 2), (24, 3, 2)]
"""Windows, conditions, times."""


def spread(counts: Counter[tuple[int, ...]], *sizes: int) -> int:
    """The largest count less the smallest one, of all tuples of indices below these sizes."""
    found = [counts[key] for key in itertools.product(*map(range, sizes))]
    return max(found) - min(found)


@pytest.mark.parametrize(("windows", "conditions", "times"), DESIGNS)
def test_over_a_cycle_of_raters_each_window_stands_at_each_place_as_often(
    windows: int, conditions: int, times: int
) -> None:
    shown = sequences(2 * windows, windows, conditions, times, seed=5)
    follows: Counter[tuple[int, ...]] = Counter()
    places: Counter[tuple[int, ...]] = Counter()
    for sequence in shown:
        places.update((place, s.window) for place, s in enumerate(sequence))
        assert spread(places, windows * times, windows) <= 1, "however many come"
        for turn in range(times):
            of_pass = sequence[turn * windows : (turn + 1) * windows]
            follows.update((turn, a.window, b.window) for a, b in itertools.pairwise(of_pass))
        assert all(a.window != b.window for a, b in itertools.pairwise(sequence)), "two passes meet"
    assert spread(places, windows * times, windows) == 0
    each_other = itertools.product(range(times), itertools.permutations(range(windows), 2))
    assert {follows[turn, *pair] for turn, pair in each_other} == {2}


@pytest.mark.parametrize(("windows", "conditions", "times"), DESIGNS)
def test_each_condition_of_a_window_comes_first_as_often(windows: int, conditions: int, times: int) -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for sequence in sequences(2 * conditions, windows, conditions, times, seed=5):
        counts.update((place // windows, s.window, s.condition) for place, s in enumerate(sequence))
        assert spread(counts, times, windows, conditions) <= 1, "however many come"
    assert spread(counts, times, windows, conditions) == 0


@pytest.mark.parametrize(
    ("windows", "conditions", "times"), [(4, 2, 1), (24, 2, 1), (24, 3, 2), (6, 6, 2), (4, 4, 4), (9, 3, 3)]
)
def test_each_condition_stands_at_each_place_of_the_sequence_as_often(
    windows: int, conditions: int, times: int
) -> None:
    shown = sequences(conditions**2 * 2, windows, conditions, times, seed=5)
    counts = Counter((place, s.condition) for sequence in shown for place, s in enumerate(sequence))
    assert spread(counts, windows * times, conditions) == 0


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
