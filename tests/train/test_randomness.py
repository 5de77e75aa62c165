"""Order, noise and dropout depend on (seed, step, index) alone."""

from __future__ import annotations

from collections import Counter

import torch

from cinesynth.train.batch import share_out
from cinesynth.train.randomness import drops_caption, generator, noise, sample_index


def test_every_epoch_sees_every_window_once_and_in_another_order() -> None:
    order = [sample_index(3, step, i, 4, 10) for step in range(5) for i in range(4)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_seed_step_and_index_each_change_the_noise() -> None:
    draws = [noise(*at, (64,)) for at in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    for i, a in enumerate(draws):
        assert not any(torch.equal(a, b) for b in draws[:i])
    assert torch.equal(draws[0], noise(0, 0, 0, (64,)))


def test_streams_of_different_draws_are_different() -> None:
    a = torch.rand(4, generator=generator(0, "sigma", 1, 2))
    b = torch.rand(4, generator=generator(0, "dropout", 1, 2))
    assert not torch.equal(a, b)


def test_caption_dropout_has_its_rate() -> None:
    dropped = Counter(drops_caption(0, step, 0, 0.25) for step in range(2000))
    assert 0.21 < dropped[True] / 2000 < 0.29
    assert not drops_caption(0, 0, 0, 0.0)


def test_every_window_is_read_once_an_epoch_by_two_then_one_then_two_workers() -> None:
    """A run of 30 windows of two shapes in batches of 6, whose number of workers changes in mid-epoch."""
    shapes = [(16, 3 if window % 3 else 2, 8, 12) for window in range(30)]
    read: list[int] = []
    for step in range(10):
        workers = 1 if 2 <= step < 4 else 2
        windows = [sample_index(5, step, place, 6, 30) for place in range(6)]
        for in_step in (False, True):
            shares = share_out([shapes[w] for w in windows], workers, 2, in_step)
            places = sorted(
                place for share in shares for forward in share if forward.counts for place in forward.places
            )
            assert places == list(range(6))
        read += windows
    assert sorted(read[:30]) == sorted(read[30:]) == list(range(30))
