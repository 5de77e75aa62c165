"""Which trials are cut, and that a cut stays one."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from cinesynth.config import HalvingSettings, TrainSettings
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from tune.halving import Rungs, is_cut, rung_steps


def train(steps: int, every: int) -> TrainSettings:
    return parse_config(TrainSettings, {"optimizer": {"steps": steps}, "validation": {"every": every}})


@pytest.mark.parametrize(
    ("grace", "factor", "steps", "every", "expected"),
    [
        (10, 3, 100, 10, [10, 30, 90]),
        (10, 3, 90, 10, [10, 30]),  # at the end nothing is left to cut
        (5, 2, 100, 20, [20, 40, 80]),
        (25, 4, 1000, 20, [40, 100, 400]),
        (50, 3, 50, 10, []),
    ],
)
def test_rungs_lie_where_losses_are_known(grace: int, factor: int, steps: int, every: int, expected: list[int]) -> None:
    assert rung_steps(HalvingSettings(grace=grace, factor=factor), train(steps, every)) == expected


def test_the_best_one_in_so_many_goes_on() -> None:
    assert not is_cut(1.0, [], 3)
    assert is_cut(2.0, [1.0], 3)
    assert not is_cut(0.5, [1.0, 2.0], 3)
    assert not is_cut(2.0, [1.0, 3.0, 4.0], 3)  # two of four go on
    assert is_cut(3.5, [1.0, 3.0, 4.0], 3)
    assert not is_cut(1.0, [1.0] * 8, 2)  # of equal ones all go on
    assert is_cut(math.nan, [5.0], 3)
    assert not is_cut(5.0, [math.nan], 3)
    draw = random.Random(0)
    for factor in (2, 3, 4):
        losses = [draw.random() for _ in range(60)]
        kept = [loss for i, loss in enumerate(losses) if not is_cut(loss, losses[:i] + losses[i + 1 :], factor)]
        assert kept == [loss for loss in losses if loss in sorted(losses)[: 60 // factor]]


def test_a_cut_stays_one_when_the_trial_is_started_again(tmp_path: Path) -> None:
    study = Storage.open(tmp_path)
    rungs = Rungs(study, HalvingSettings(grace=10, factor=2), train(100, 10))
    assert rungs.reaches("a", 5, 1.0) is None
    assert rungs.reaches("a", 10, 1.0) is None
    told = rungs.reaches("b", 10, 2.0)
    assert told == "held-out loss 2 at step 10 is not among the best one in 2 of 2 trials"
    again = Rungs(study, HalvingSettings(grace=10, factor=2), train(100, 10))
    assert again.reaches("b", 10, 2.0) == told
    assert again.reaches("c", 10, 0.5) is None
    assert again.reaches("a", 10, 1.0) is None  # it had gone on, and does
    assert again.reaches("a", 20, 1.0) is None
    assert again.reaches("baseline", 20, 2.0, spared=True) is None
