"""Which rank takes which windows of a step."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from cinesynth.train.batch import Forward, share_out

LONG, SHORT, WIDE = (16, 9, 8, 12), (16, 3, 8, 12), (16, 9, 8, 16)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("in_step", [False, True])
def test_every_window_counts_once_in_passes_of_one_shape(ranks: int, micro_batch: int, in_step: bool) -> None:
    shapes = [LONG, SHORT, WIDE, LONG, LONG, SHORT, LONG, LONG]
    shares = share_out(shapes, ranks, micro_batch, in_step)
    assert len(shares) == ranks
    passes = [forward for share in shares for forward in share]
    assert Counter(place for f in passes if f.counts for place in f.places) == Counter(range(len(shapes)))
    assert all(len({shapes[place] for place in f.places}) == 1 for f in passes)
    assert max(len(f.places) for f in passes) <= micro_batch
    if in_step:
        assert len({len(share) for share in shares}) == 1
    else:
        assert all(f.counts for f in passes)


def test_ranks_get_about_equally_many_tokens() -> None:
    shapes = [LONG] * 2 + [SHORT] * 6
    shares = share_out(shapes, 2, 2, False)
    tokens = [sum(math.prod(shapes[p][1:]) for f in share for p in f.places) for share in shares]
    assert tokens[0] == tokens[1]


def test_windows_of_one_shape_are_split_over_the_ranks_before_they_are_put_together() -> None:
    assert share_out([LONG] * 4, 2, 4, False) == [[Forward((0, 1))], [Forward((2, 3))]]


def test_a_rank_without_work_runs_the_smallest_window_for_nothing() -> None:
    shares = share_out([LONG, LONG, SHORT], 2, 1, True)
    assert [len(share) for share in shares] == [2, 2]
    extra = [f for share in shares for f in share if not f.counts]
    assert extra == [Forward((2,), counts=False)]
