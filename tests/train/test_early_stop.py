"""When a training ends by LPIPS, and which checkpoint is delivered, however validations come in."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cinesynth.config import EarlyStop, TrainConfig, TrainSettings
from cinesynth.errors import ConfigError
from cinesynth.settings import differences, parse_config
from cinesynth.train.early_stop import Verdict, best_of, due_steps, judge, possible_bests

DUE = due_steps(100, 650)


def verdict(values: list[float], **changes: Any) -> Verdict:
    return judge(dict(zip(DUE, values, strict=False)), DUE, EarlyStop(**changes))


def test_the_last_step_is_always_validated() -> None:
    assert DUE == [100, 200, 300, 400, 500, 600, 650]
    assert due_steps(100, 300) == [100, 200, 300]
    assert due_steps(500, 60) == [60]


@pytest.mark.parametrize(
    ("values", "changes", "best", "ends_at"),
    [
        ([], {}, None, None),
        ([0.5, 0.4, 0.3, 0.2], {}, 400, None),
        ([0.5, 0.4, 0.41, 0.4, 0.42, 0.1], {}, 200, 500),  # an equal value is no improvement
        ([0.5, 0.4, 0.41, 0.39, 0.42, 0.43], {"patience": 2}, 400, 600),
        ([0.5, 0.49, 0.48, 0.47], {"patience": 2, "min_delta": 0.1}, 300, 300),  # the best is the lowest all the same
        ([0.1, 0.5, 0.4, 0.6, 0.6], {"patience": 2, "warmup": 200}, 300, 500),  # before 200 nothing counts
        ([0.1, 0.2], {"warmup": 1000}, None, None),
        ([0.3, 0.4], {"patience": 1}, 100, 200),
    ],
)
def test_the_verdict(values: list[float], changes: dict[str, Any], best: int | None, ends_at: int | None) -> None:
    assert verdict(values, **changes) == Verdict(best, ends_at)


def test_neither_order_nor_delay_changes_the_verdict() -> None:
    """Validations arrive in any order; the verdict is never taken back, and at the end it is the same. Its best step
    was always among those that might be the best."""
    draw = random.Random(0)
    for _ in range(300):
        lpips = {step: draw.choice([0.3, 0.31, 0.32, 0.35, 0.4]) for step in DUE}
        settings = EarlyStop(
            patience=draw.randint(1, 3), min_delta=draw.choice([0, 0.015]), warmup=draw.choice([0, 250])
        )
        whole = judge(lpips, DUE, settings)
        arrival = draw.sample(DUE, len(DUE))
        for count in range(len(DUE) + 1):
            done = {step: lpips[step] for step in arrival[:count]}
            so_far = judge(done, DUE, settings)
            assert whole.best is None or whole.best not in done or whole.best in possible_bests(done, DUE, settings)
            assert so_far.ends_at in (None, whole.ends_at)
            assert so_far.ends_at is None or so_far == whole
        beyond = {step: v for step, v in lpips.items() if whole.ends_at is None or step <= whole.ends_at}
        assert judge(beyond, DUE, settings) == whole


def test_a_missing_validation_is_never_skipped() -> None:
    lpips = {100: 0.3, 300: 0.4, 400: 0.4, 500: 0.4, 600: 0.4}
    assert judge(lpips, DUE, EarlyStop(patience=2)) == Verdict(100, None)
    assert judge(lpips | {200: 0.4}, DUE, EarlyStop(patience=2)) == Verdict(100, 300)


def test_without_early_stop_the_best_is_the_lowest() -> None:
    assert best_of({}) is None
    assert best_of({300: 0.2, 100: 0.3, 200: 0.2}) == 200


def config(**changes: Any) -> TrainConfig:
    return parse_config(TrainConfig, {"name": "noir", "storage": "/s", "dataset": "d", **changes})


def test_what_decides_the_end_is_identity_and_only_then() -> None:
    plain = config().identity()
    assert "validation_videos" not in plain
    watched = config(validation_videos={"every": 7})
    assert watched.identity() == plain
    assert differences(plain, watched) == []
    stopped = config(early_stop={"patience": 2}, validation_videos={"every": 7})
    recorded = stopped.identity()
    assert recorded["validation_videos"]["every"] == 7
    assert "placement" not in recorded["validation_videos"]
    assert (
        differences(recorded, config(early_stop={"patience": 2}, validation_videos={"every": 7, "placement": "after"}))
        == []
    )
    assert differences(recorded, config(early_stop={"patience": 2}, validation_videos={"every": 8})) == [
        "validation_videos.every: recorded 7, given 8"
    ]
    assert any("early_stop" in line for line in differences(recorded, watched))
    assert any("early_stop" in line for line in differences(plain, stopped))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_stop": {}}, "early_stop needs validation_videos, whose LPIPS it follows"),
        ({"mode": "full", "validation_videos": {}}, "validation_videos needs mode lora"),
        ({"early_stop": {"patience": 0}, "validation_videos": {}}, r"early_stop\.patience = 0"),
    ],
)
def test_what_cannot_decide_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)
    assert TrainSettings().early_stop is None
