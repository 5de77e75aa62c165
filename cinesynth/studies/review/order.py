"""Balanced orders: which condition a rater sees of a window, where in the sequence, and on which side.

A Latin square gives each window every condition in turn over the raters. Williams' square (Australian Journal of
Scientific Research A 2, 1949) orders the windows of each pass: over n raters (2n for odd n) each window stands once
(twice) at each place, and follows each other one once (twice), so that neither fatigue nor what was seen just before
favours one.

Rows are counted by raters, never by passes: where passes use rows up, some raters' first passes never see some rows.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple


def williams_row(row: int, n: int) -> list[int]:
    """A row of Williams' square of n treatments 0..n-1; rows repeat after n, for odd n after 2n.

    Rows 0 to n - 1 hold each treatment once at each place, and so do rows n to 2n - 1.
    """
    first = [0]
    low, high = 1, n - 1
    while len(first) < n:
        first.append(low if len(first) % 2 else high)
        low, high = (low + 1, high) if len(first) % 2 == 0 else (low, high - 1)
    shifted = [(place + row) % n for place in first]
    mirrored = n % 2 == 1 and row // n % 2 == 1
    return shifted[::-1] if mirrored else shifted


class Shown(NamedTuple):
    """One item of a rater's sequence: a window, a condition (index), and whether its arms change sides."""

    window: int
    condition: int
    swapped: bool


def sequences(raters: int, windows: int, conditions: int, times: int, seed: int) -> list[list[Shown]]:
    """What each rater sees, in order.

    Each rater sees each window `times` times, in as many passes over all windows, each time in another condition.
    However many raters take part in order, these counts are balanced to within one: of a window in a condition, of a
    window in a condition within one of the passes, of a window at a place of the sequence, and of the two sides of a
    window in a condition. What is free of sides after that is balanced within the rater, and then drawn. Over the
    square of `conditions` raters each condition also stands at each place of the sequence as often, or nearly.

    Args:
        raters: sequences.
        windows, conditions: how many there are; they are named by index.
        times: at most `conditions`.
        seed: of the names of rows and columns, and of sides that are free.
    """
    draw = random.Random(seed)
    place_of_window = draw.sample(range(windows), windows)
    window_at = {place: window for window, place in enumerate(place_of_window)}
    condition_at = draw.sample(range(conditions), conditions)
    of_window: Counter[Hashable] = Counter()
    found = []
    for rater in range(raters):
        of_rater: Counter[Hashable] = Counter()
        sequence = []
        for turn in range(times):
            step = _condition_step(rater, turn, conditions, times)
            for place in williams_row(_row_of_pass(rater, turn, windows), windows):
                window = window_at[place]
                condition = condition_at[(place + step) % conditions]
                leaning = of_window[window, condition] or of_rater[condition]
                swapped = leaning > 0 or (leaning == 0 and draw.random() < 0.5)
                for counter, key in ((of_window, (window, condition)), (of_rater, condition)):
                    counter[key] += -1 if swapped else 1
                sequence.append(Shown(window, condition, swapped))
        found.append(sequence)
    return found


def _row_of_pass(rater: int, turn: int, windows: int) -> int:
    """The row of Williams' square that orders a rater's pass; of each `windows` raters, a pass has each row once.

    Each pass begins a row further on, so that a window comes after another one than in the pass before. Of three
    windows or fewer, the next row can begin with the window that the last one ended with: there the row stays.
    """
    block, row = divmod(rater, windows)
    return block * windows + (row + turn * (windows > 3)) % windows


def _condition_step(rater: int, turn: int, conditions: int, times: int) -> int:
    """How far a pass stands from the first one in the Latin square of conditions.

    A rater takes the next `times` columns. Which of them comes first goes round as soon as the raters' first columns
    repeat, so that of each `conditions` raters a pass has every column once.

    Rows of windows move on by one a rater. Where columns went round with them, a place of the sequence would always
    hold one condition: so they go the way that comes round to the same one later, and after each `conditions` raters
    move on by one more.
    """
    block, row = divmod(rater, conditions)
    until_repeated = conditions // math.gcd(conditions, times)
    column = row * times + (turn + row // until_repeated) % times
    backwards = math.gcd(conditions, times + 1) > math.gcd(conditions, times - 1)
    return block + (-column if backwards else column)


def places_of_checks(length: int, checks: int, draw: random.Random) -> list[int]:
    """Places before which checks stand in a sequence: one in each equal part of it, never at its beginning."""
    edges = [1 + round(part * (length - 1) / checks) for part in range(checks + 1)] if checks else []
    return [draw.randint(low, max(low, high - 1)) for low, high in itertools.pairwise(edges)]
