"""The search itself: Ray Tune runs the trials, Optuna draws their points, the study's records say what was done.

The searcher is ours, not Ray's OptunaSearch: that one tells a trial without finite objectives as complete (Optuna
raises, and the trial stays RUNNING), enqueues its points again at every start, and cannot take up a trial that was
running when its driver was killed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from cinesynth.config import TuneConfig
from tune.records import COMPLETE, FAILED, Record, Records
from tune.space import Point, Trial, distributions, first_trials, params_of, point_of

log = logging.getLogger("cinesynth.tune")

_RUN = "run"
"""The attribute of an Optuna trial that names its train run."""


class StudySearch(Searcher):
    """Suggests trials to Ray Tune: those of the baseline, given points, then drawn ones; and tells Optuna how they end.

    Args:
        config: of the study.
        study: Optuna's.
        records: what trials ended.
        ended: called after each that ends.
    """

    def __init__(
        self, config: TuneConfig, study: optuna.Study, records: Records, ended: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.config, self.study, self.records, self.ended = config, study, records, ended
        self.baseline = Point.of(config.train)
        self.distributions = distributions(config.space)
        self._started = time.monotonic()
        self._of_tune: dict[str, tuple[Trial, int | None]] = {}
        self.reconcile()

    def reconcile(self) -> None:
        """Bring Optuna's trials in line with the records, which are the truth."""
        fixed, points = first_trials(self.config)
        known = self.records.read()
        told = set()
        self._taken_up: list[int] = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING:
                continue
            name = self._trial_of(trial.params).name(self.config.name)
            told.add(name)
            if trial.state == TrialState.RUNNING:
                if name in known:
                    self._tell(trial.number, known[name])
                else:
                    self._taken_up.append(trial.number)
        for name, record in known.items():
            if name not in told and record.trial.seed == self.config.train.seed:
                self._add(record)
        for point in [fixed[0].point, *points]:
            params = params_of(point, self.config.space, self.baseline, "a point")
            if Trial(point, self.config.train.seed).name(self.config.name) not in {*known, *told}:
                self.study.enqueue_trial(params, skip_if_exists=True)
        self._more_seeds = [trial for trial in fixed[1:] if trial.name(self.config.name) not in known]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # FINISHED is a str
        """The next trial's point and seed, or that there is none."""
        hours = self.config.budget.hours
        if hours is not None and time.monotonic() - self._started > 3600 * hours:
            return str(Searcher.FINISHED)
        while True:
            if self._taken_up:
                return self._give(trial_id, self._trial_of(self._params(number := self._taken_up.pop(0))), number)
            asked = sum(t.state != TrialState.WAITING for t in self.study.get_trials(deepcopy=False))
            if asked and self._more_seeds:
                return self._give(trial_id, self._more_seeds.pop(0), None)
            if asked >= self.config.budget.trials:
                return str(Searcher.FINISHED)
            drawn = self.study.ask(self.distributions)
            trial = self._trial_of(drawn.params)
            name = trial.name(self.config.name)
            drawn.set_user_attr(_RUN, name)
            known = self.records.read()
            if name not in known:
                return self._give(trial_id, trial, drawn.number)
            self._tell(drawn.number, known[name])  # rounding made it a point that was tried

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended; a failed one is put on record here, as it could not do so itself."""
        trial, number = self._of_tune.pop(trial_id)
        name = trial.name(self.config.name)
        record = self.records.read().get(name)
        if record is None:
            reason = "it ended without a score" if not error else "it failed; see its log"
            record = Record(name, trial, FAILED, facts={"reason": reason}, ended=time.time())
            self.records.write(record)
        if number is not None:
            self._tell(number, record)
        self.ended()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate results decide nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is to be saved: a study that goes on is reconciled with its records."""
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored."""

    def _give(self, trial_id: str, trial: Trial, number: int | None) -> dict[str, Any]:
        self._of_tune[trial_id] = trial, number
        return {"point": trial.point.to_json(), "seed": trial.seed}

    def _trial_of(self, params: dict[str, Any]) -> Trial:
        return Trial(point_of(params, self.config.space, self.baseline), self.config.train.seed)

    def _params(self, number: int) -> dict[str, Any]:
        return dict(self.study.get_trials(deepcopy=False)[number].params)

    def _tell(self, number: int, record: Record) -> None:
        values = self._finite(record)
        if values is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, list(values))

    def _add(self, record: Record) -> None:
        """Put a trial into a storage that lacks it, such as one that was deleted."""
        values = self._finite(record)
        params = params_of(record.trial.point, self.config.space, self.baseline, f"trial {record.name}")
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if values else TrialState.FAIL,
                values=None if values is None else list(values),
                params=params,
                distributions=self.distributions,
                user_attrs={_RUN: record.name},
            )
        )

    def _finite(self, record: Record) -> tuple[float, float] | None:
        values = record.values(self.config.objectives) if record.status == COMPLETE else None
        return values if values is not None and all(map(math.isfinite, values)) else None
