"""Validations by videos as records in a run's folder, and the queue that has the missing ones done."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cinesynth.config import TrainConfig
from cinesynth.errors import ConfigError, DatasetError
from cinesynth.metrics import catalogue
from cinesynth.metrics.statistics import MIN_GROUPS
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.train import beside
from cinesynth.train.beside import Paced, Reporter, settle_placement
from cinesynth.train.early_stop import Verdict
from cinesynth.train.validations import ValidationQueue, Validations
from cinesynth.train.videos import validation_metrics

VALUES = {
    "name": "noir",
    "dataset": "d",
    "optimizer": {"steps": 8},
    "early_stop": {"patience": 2},
    "validation_videos": {"every": 2},
}


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    return parse_config(TrainConfig, {**VALUES, "storage": str(tmp_path), **changes})


def of(config: TrainConfig) -> Validations:
    return Validations(Run.at(config).folder, config)


def test_records_make_the_verdict_and_say_what_is_missing(tmp_path: Path) -> None:
    validations = of(config(tmp_path))
    steps = [2, 4, 6, 8]
    assert validations.missing([4, 2]) == [2, 4]
    assert validations.needed(steps) == {2, 4, 6, 8}
    validations.write(2, {"figures": {"lpips": 0.3}})
    validations.write(6, {"figures": {"lpips": 0.4}})
    assert validations.verdict() == Verdict(2, None)
    assert validations.missing(steps) == [4, 8]
    validations.write(4, {"figures": {"lpips": 0.4}})
    assert of(config(tmp_path)).verdict() == Verdict(2, 6)
    assert validations.missing(steps) == []  # the training ends at 6
    assert validations.needed(steps) == {2}
    assert list(validations.records()) == [2, 4, 6]


def test_a_best_that_is_committed_while_one_asks_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validations, beside_it = of(config(tmp_path)), of(config(tmp_path))
    validations.write(2, {"figures": {"lpips": 0.3}})
    read = validations.records

    def records() -> dict[int, dict[str, Any]]:
        found = read()
        beside_it.write(4, {"figures": {"lpips": 0.2}})
        return found

    monkeypatch.setattr(validations, "records", records)
    assert 4 in validations.needed([2, 4, 6, 8])
    assert validations.needed([2, 4, 6, 8]) == {4, 6, 8}


def test_what_may_be_the_best_once_a_gap_is_closed_is_needed(tmp_path: Path) -> None:
    validations = of(config(tmp_path))
    validations.write(2, {"figures": {"lpips": 0.3}})
    validations.write(6, {"figures": {"lpips": 0.2}})  # as after a kill, by workers who make videos themselves
    validations.write(8, {"figures": {"lpips": 0.4}})
    assert validations.needed([2, 4, 6, 8]) == {2, 4, 6}
    validations.write(4, {"figures": {"lpips": 0.5}})
    assert validations.verdict().best == 6
    assert validations.needed([2, 4, 6, 8]) == {6}


def test_without_early_stop_nothing_ends_and_the_best_is_kept(tmp_path: Path) -> None:
    validations = of(config(tmp_path, early_stop=None))
    for step, lpips in ((2, 0.3), (4, 0.5), (6, 0.4)):
        validations.write(step, {"figures": {"lpips": lpips}})
    assert validations.verdict() == Verdict(2, None)
    assert validations.needed([2, 4, 6, 8]) == {2, 8}


class Workers:
    """Validations that are done when a test says so."""

    def __init__(self, validations: Validations) -> None:
        self.validations = validations
        self.started: list[int] = []
        self.running: Future[None] | None = None

    def submit(self, step: int) -> Future[None]:
        assert self.running is None or self.running.done(), "one at a time"
        self.started.append(step)
        self.running = Future()
        return self.running

    def end(self, error: Exception | None = None, lpips: float = 0.3) -> None:
        assert self.running is not None
        if error is not None:
            self.running.set_exception(error)
            return
        self.validations.write(self.started[-1], {"figures": {"lpips": lpips}})
        self.running.set_result(None)


@pytest.fixture
def validations(tmp_path: Path) -> Validations:
    return of(config(tmp_path))


def test_one_at_a_time_in_the_order_of_steps_and_without_waiting(validations: Validations) -> None:
    there: list[int] = []
    workers = Workers(validations)
    queue = ValidationQueue(lambda: validations.missing(there), workers.submit, 3)
    queue.look()
    assert workers.started == []
    there += [2]
    for more in ([], [4], [6]):  # a slow one: training writes two more checkpoints meanwhile
        there += more
        queue.look()
        assert workers.started == [2]
    workers.end()
    queue.look()
    assert workers.started == [2, 4]


def test_a_failed_validation_is_done_again_and_never_skipped(
    validations: Validations, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers(validations)
    queue = ValidationQueue(lambda: validations.missing([2, 4]), workers.submit, 3)
    with caplog.at_level(logging.WARNING, logger="cinesynth.train"):
        for _ in range(2):
            queue.look()
            workers.end(RuntimeError("Traceback\n  somewhere\nthe node went away"))
        queue.look()
    assert (
        "the validation of step 2 failed (the node went away); it is done again (failure 2 of at most 3)" in caplog.text
    )
    workers.end()
    queue.look()
    assert workers.started == [2, 2, 2, 4]
    for _ in range(2):  # failures count in a row
        workers.end(RuntimeError("the node went away"))
        queue.look()
    workers.end(RuntimeError("the node went away"))
    with pytest.raises(RuntimeError, match="the node went away"):
        queue.look()


def test_what_would_fail_again_is_not_done_again(validations: Validations) -> None:
    workers = Workers(validations)
    queue = ValidationQueue(lambda: validations.missing([2]), workers.submit, 3)
    queue.look()
    workers.end(DatasetError("a window's pixels are gone"))
    with pytest.raises(DatasetError):
        queue.look()


def test_the_end_waits_for_what_counts_and_ends_what_does_not(validations: Validations) -> None:
    class AtOnce(Workers):
        def submit(self, step: int) -> Future[None]:
            running = super().submit(step)
            if step < 8:
                self.end(lpips={2: 0.3, 4: 0.4, 6: 0.5}[step])
            return running

    workers = AtOnce(validations)
    queue = ValidationQueue(lambda: validations.missing([2, 4, 6, 8]), workers.submit, 3)
    queue.finish(lambda: None, glance_s=0)
    assert workers.started == [2, 4, 6]  # that of 6 ends the training
    assert validations.verdict() == Verdict(2, 6)


@pytest.mark.parametrize("by_itself", [True, False])
def test_what_is_of_no_use_any_more_is_waited_for_before_it_is_ended(validations: Validations, by_itself: bool) -> None:
    workers = Workers(validations)
    queue = ValidationQueue(lambda: validations.missing([2]), workers.submit, 3, 30 if by_itself else 0.1)
    queue.look()
    validations.write(2, {"figures": {"lpips": 0.3}})  # committed, and its process has not ended yet
    looks = []

    def check() -> None:
        looks.append(1)
        if by_itself and len(looks) == 3:
            workers.end()

    queue.finish(check, glance_s=0.01)
    assert workers.running is not None
    assert workers.running.cancelled() is not by_itself
    assert workers.started == [2]


def test_callbacks_hear_of_every_validation_once(tmp_path: Path) -> None:
    given = config(tmp_path)
    run = Run.open(given)
    heard: list[tuple[int, dict[str, float]]] = []
    reporter = Reporter(run, [lambda step, figures: heard.append((step, dict(figures)))])
    loss = {"val_loss": 0.5, "val_loss/0.5": 0.5}
    run.write_events("train-00000000", [{"step": 0, "val_set": "x", "time": 1.0, **loss}, {"step": 1, "loss": 2.0}])
    of(given).write(2, {"figures": {"lpips": 0.3}})
    reporter.look()
    reporter.look()
    run.write_events("train-00000002", [{"step": 4, "val_set": "x", **loss}])
    reporter.look()
    assert heard == [(0, loss), (2, {"lpips": 0.3}), (4, loss)]
    again: list[int] = []
    Reporter(run, [lambda step, figures: again.append(step)]).look()
    assert again == [0, 2, 4]


def test_callbacks_hear_of_what_is_written_anew_after_a_try_that_ended_early(tmp_path: Path) -> None:
    """Segments after the checkpoint that a run goes on from are parts, or are cut at other steps than the new ones."""
    run = Run.open(config(tmp_path))
    run.write_events("train-00000000", [{"step": 4, "val_loss": 0.5}])
    run.write_events("train-00000004", [{"step": 5, "loss": 2.0}])
    run.write_events("train-00000006", [{"step": 7, "loss": 2.0}])
    heard: list[int] = []
    reporter = Reporter(run, [lambda step, figures: heard.append(step)])
    reporter.look()
    assert heard == [4]
    run.write_events("train-00000004", [{"step": 5, "loss": 2.0}, {"step": 8, "val_loss": 0.4}])
    reporter.look()
    assert heard == [4, 8]
    run.write_events("train-00000008", [{"step": 12, "val_loss": 0.3}])
    reporter.look()
    reporter.look()
    assert heard == [4, 8, 12]


def test_looks_are_paced() -> None:
    calls: list[int] = []
    paced = Paced([lambda: calls.append(1)], every_s=3600)
    for _ in range(5):
        paced()
    assert calls == [1]


def test_kvd_is_measured_where_groups_and_frames_are_enough_for_it() -> None:
    least = catalogue.find("kvd").network.min_frames

    def measured(groups: int, shortest: int = least) -> list[str]:
        windows: Any = [SimpleNamespace(group=str(i % groups), num_frames=least) for i in range(2 * MIN_GROUPS)]
        windows[3].num_frames = shortest
        return validation_metrics(windows)

    assert measured(MIN_GROUPS) == ["lpips", "kvd"]
    assert measured(MIN_GROUPS - 1) == ["lpips"]
    assert measured(MIN_GROUPS, least - 1) == ["lpips"]


@pytest.mark.parametrize(
    ("asked", "room", "placement"),
    [("inline", False, "inline"), ("after", False, "after"), ("task", True, "task"), ("auto", True, "task"),
     ("auto", False, "inline")],
)  # fmt: skip
def test_validations_are_made_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, room: bool, placement: str
) -> None:
    needed: list[int] = []

    def check_room(workers: int, *_: Any) -> None:
        needed.append(workers)
        if not room:
            raise ConfigError("3 workers are too many")

    monkeypatch.setattr(beside, "check_room", check_room)
    videos = {"every": 2, "placement": asked}
    assert settle_placement(config(tmp_path, workers=2, validation_videos=videos)) == placement
    assert needed == ([3] if asked in ("auto", "task") else [])  # one beside the workers
    assert settle_placement(config(tmp_path, early_stop=None, validation_videos=None)) is None
    if not room:
        with pytest.raises(ConfigError, match=r"placement: task needs room .*: 3 workers are too many; .* inline or"):
            settle_placement(config(tmp_path, validation_videos=videos | {"placement": "task"}))
