"""What Ray Tune asks for the next point: Optuna by ask and tell, in step with the trials that are on record.

It stands in the place of Tune's own `OptunaSearch`: that one tells a trial without finite objectives as complete
(Optuna raises, and the trial stays RUNNING), enqueues its points again at every start, and cannot take up a trial that
was running when its driver was killed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from cinesynth.config import TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.storage import Storage
from cinesynth.train.failures import Failures
from tune.records import CUT, FAILED, Record, Records
from tune.space import Point, PointsOfParams, Trial, distributions, every_point, first_trials, params_of, wanted_points

log = logging.getLogger("cinesynth.tune")

_RUN, _FROM = "run", "study"
"""Attributes of an Optuna trial: its train run; the earlier study that it was taken from."""


class StudySearch(Searcher):
    """Suggests trials to Ray Tune: those of the baseline, given points, then drawn ones; and tells Optuna how they end.

    Args:
        config: of the study.
        study: Optuna's.
        records: what trials ended.
        ended: called after each that ends.
        earlier: trials of other studies that the sampler is to know, by study.
    """

    def __init__(
        self,
        config: TuneConfig,
        study: optuna.Study,
        records: Records,
        ended: Callable[[], None] = lambda: None,
        earlier: Mapping[str, Mapping[str, Record]] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.study, self.records, self.ended = config, study, records, ended
        self.baseline = Point.of(config.train)
        self._point_of = PointsOfParams(config)
        self.distributions = distributions(config.space)
        self.every, self.wanted = every_point(config), wanted_points(config)
        self._started = time.monotonic()
        self._of_tune: dict[str, tuple[Trial, int | None]] = {}
        self._taken_up: list[tuple[Trial, int | None]] = []
        self._losses: dict[str, Failures] = {}
        self.reconcile()
        self._learn(earlier or {})

    def reconcile(self) -> None:
        """Bring Optuna's trials in line with the records, which are the truth."""
        seeds, points = first_trials(self.config)
        known = self.records.read()
        told, given_up = set(), []
        self._taken_up = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING or _FROM in trial.user_attrs:
                continue
            of_study = self._trial_of(trial.params)
            name = of_study.name(self.config.name)
            record = known.get(name)
            # Studies of before trained given points rounded, under another name. Only the baseline is trained anew.
            if (ran := known.get(trial.user_attrs.get(_RUN, name))) is not None:
                told.add(ran.name)
                if record is None and of_study.point != self.baseline:
                    record = ran
            if trial.state == TrialState.RUNNING and record is None:
                self._taken_up.append((of_study, trial.number))
            elif trial.state == TrialState.RUNNING and record is not None:
                self._tell(trial.number, record)
            elif record is None:
                given_up.append(of_study.point)
                continue
            told.add(name)
        for name, record in known.items():
            if name not in told and record.trial.seed == self.config.train.seed:
                self._add(record)
        grid = self.every if self.config.method == "grid" and self.every is not None else []
        tried = {*known, *told}
        self._next = [
            p for p in dict.fromkeys([seeds[0].point, *given_up, *points, *grid]) if self._name(p) not in tried
        ]
        self._more_seeds = [trial for trial in seeds[1:] if trial.name(self.config.name) not in known]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next trial's point and seed, or that there is none; None: perhaps later, where one that runs is lost."""
        hours = self.config.budget.hours
        if hours is not None and time.monotonic() - self._started > 3600 * hours:
            return str(Searcher.FINISHED)
        while True:
            if self._taken_up:
                return self._give(trial_id, *self._taken_up.pop(0))
            known = self.records.read()
            running = {trial.name(self.config.name) for trial, number in self._of_tune.values() if number is not None}
            tried = {*running, *(name for name, r in known.items() if r.trial.seed == self.config.train.seed)}
            if tried and self._more_seeds:
                return self._give(trial_id, self._more_seeds.pop(0), None)
            if len(tried) >= self.wanted and self._name(self.baseline) in tried:
                return None if self._of_tune else str(Searcher.FINISHED)
            if self._next:
                self.study.enqueue_trial(self._params_of(self._next.pop(0)))
            drawn = self.study.ask(self.distributions)
            trial = self._trial_of(drawn.params)
            name = trial.name(self.config.name)
            drawn.set_user_attr(_RUN, name)
            if name not in tried:
                return self._give(trial_id, trial, drawn.number)
            if name in known:  # rounding made it a point that was tried
                self._tell(drawn.number, known[name])
            else:
                self.study.tell(drawn.number, state=TrialState.FAIL)
            if self.every is not None and not self._next:
                self._next = [point for point in self.every if self._name(point) not in tried][:1]

    def close(self) -> None:
        """Leave no trial RUNNING: what was not taken up, as the time was over, is tried first the next time."""
        for _, number in self._taken_up:
            if number is not None:
                self.study.tell(number, state=TrialState.FAIL)
        self._taken_up = []

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended, and put on record that it failed.

        One whose process was lost, with its node or by itself, goes on in another process, `train.max_failures` times
        without progress.
        """
        trial, number = self._of_tune.pop(trial_id)
        name = trial.name(self.config.name)
        record = self.records.read().get(name)
        if record is None:
            reason = (result or {}).get("reason", "it ended without a score")
            if error:
                losses = self._losses[name]
                if losses.another():
                    log.warning(
                        "the process of trial %s was lost after step %d; another goes on (%s)",
                        name,
                        losses.step,
                        losses,
                    )
                    self._taken_up.append((trial, number))
                    return
                reason = f"its process was lost {losses.count} times without progress; see its log"
            record = Record(name, trial, FAILED, facts={"reason": reason}, ended=time.time())
            self.records.write(record)
        if number is not None:
            self._tell(number, record)
        self.ended()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Held-out losses on the way decide nothing here: a trial cuts itself."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is to be saved: a study that goes on is reconciled with its records."""
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored."""

    def _give(self, trial_id: str, trial: Trial, number: int | None) -> dict[str, Any]:
        self._of_tune[trial_id] = trial, number
        name = trial.name(self.config.name)
        if name not in self._losses:
            run = Storage.open(self.config.storage).child("runs", name)
            self._losses[name] = Failures(run, self.config.train.max_failures)
        return {"point": trial.point.to_json(), "seed": trial.seed, "asked": time.time()}

    def _trial_of(self, params: dict[str, Any]) -> Trial:
        return Trial(self._point_of(params), self.config.train.seed)

    def _name(self, point: Point) -> str:
        return Trial(point, self.config.train.seed).name(self.config.name)

    def _params_of(self, point: Point, what: str = "a point") -> dict[str, Any]:
        return params_of(point, self.config.space, self.baseline, what)

    def _tell(self, number: int, record: Record) -> None:
        state = self._state(record)
        values = list(self._values(record)) if state == TrialState.COMPLETE else None
        self.study.tell(number, values, state=None if values else state)

    def _add(self, record: Record, study: str | None = None) -> None:
        """Put a trial into a storage that lacks it, such as one that was deleted; or one of an earlier study."""
        state = self._state(record)
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=list(self._values(record)) if state == TrialState.COMPLETE else None,
                params=self._params_of(record.trial.point, f"trial {record.name}"),
                distributions=self.distributions,
                user_attrs={_RUN: record.name, **({} if study is None else {_FROM: study})},
            )
        )

    def _learn(self, earlier: Mapping[str, Mapping[str, Record]]) -> None:
        """Tell the sampler of trials of other studies that lie in this space, once."""
        known = {t.user_attrs[_RUN] for t in self.study.get_trials(deepcopy=False) if _FROM in t.user_attrs}
        for study, records in earlier.items():
            usable = [r for r in records.values() if self._state(r) == TrialState.COMPLETE]
            inside = [record for record in usable if self._holds(record.trial.point)]
            for record in inside:
                if record.name not in known:
                    self._add(record, study)
            log.info("the sampler knows %d of %d trials of study %s", len(inside), len(usable), study)

    def _holds(self, point: Point) -> bool:
        try:
            self._params_of(point)
        except ConfigError:
            return False
        return True

    def _state(self, record: Record) -> TrialState:
        if record.status == CUT:
            return TrialState.PRUNED
        return TrialState.FAIL if record.values(self.config.objectives) is None else TrialState.COMPLETE

    def _values(self, record: Record) -> tuple[float, float]:
        values = record.values(self.config.objectives)
        assert values is not None
        return values
