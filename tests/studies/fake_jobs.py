"""Stand-ins for the drivers of a study's cells: each leaves the files that a study reads of a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cinesynth.config import EvaluateConfig, GenerateConfig, JobConfig, TrainConfig
from cinesynth.errors import TrainingError
from cinesynth.metrics import catalogue
from cinesynth.metrics.record import SCHEMA, Comparison, Definition, IntervalRecord, MetricsRecord, Value
from cinesynth.runs import COMPLETE, FAILED, RESULT_SCHEMA
from cinesynth.settings import parse_config
from cinesynth.studies.cells import Cells
from cinesynth.studies.config import StudyConfig
from cinesynth.studies.families import FamilyConfig
from cinesynth.studies.grid import Grid
from cinesynth.studies.inputs import Inputs

INPUTS = Inputs("base", {"home": "hash-home", "away": "hash-away", "long": "hash-long"})

Measure = Callable[[EvaluateConfig, str], tuple[float, float]]
"""(evaluation, metric) to the difference of its second arm and its first, and the standard error."""


def study_config(storage: Path, study: str = "rank_quality", **changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "name": "s",
        "study": study,
        "storage": str(storage),
        "domains": {"historical": "home", "sci-fi": "away"},
        "long": "long",
        "ranks": [4, 32],
        "seeds": [0, 1],
        "lr_factors": [0.5, 1],
        "train": {"optimizer": {"steps": 60, "lr": 2e-3}},
        "generate": {"split": "test", "max_windows": 8, "expansion": {"segment_frames": 33, "overlap": 0}},
    }
    return parse_config(StudyConfig, {**values, **changes})


def no_difference(config: EvaluateConfig, metric: str) -> tuple[float, float]:
    return 0.1, 1.0


class FakeJobs:
    """Jobs by kind, for `run_study` and `Cells`.

    Args:
        measure: what evaluations find.
        losses: held-out loss by learning rate; default: the lower rate's is lower.
        fails: a training that fails, by rank and learning rate.
        unmeasured: metrics that have no weights.
        spread: factor of the seconds of each warm video of a generation.
    """

    def __init__(
        self,
        measure: Measure = no_difference,
        losses: Callable[[float], float] = lambda lr: lr,
        fails: Callable[[TrainConfig], bool] = lambda config: False,
        step_seconds: Callable[[TrainConfig], float] = lambda config: 0.1,
        unmeasured: frozenset[str] = frozenset(),
        spread: tuple[float, ...] = (0.9, 1.0, 1.0, 1.0, 1.1, 5.0),
    ) -> None:
        self.unmeasured, self.spread = unmeasured, spread
        self.measure, self.losses, self.fails, self.step_seconds = measure, losses, fails, step_seconds
        self.ran: list[str] = []

    def __getitem__(self, kind: str) -> Callable[[Any], dict[str, Any]]:
        return {"train": self.train, "generate": self.generate, "evaluate": self.evaluate}[kind]

    @property
    def jobs(self) -> dict[str, Callable[[Any], dict[str, Any]]]:
        jobs = {"train": self.train, "generate": self.generate, "evaluate": self.evaluate, "family": self.family}
        return jobs

    def train(self, config: TrainConfig) -> dict[str, Any]:
        if self.fails(config):
            self._end(config, {"status": FAILED, "reason": (reason := "step 3: loss nan; lower <lr>")})
            raise TrainingError(reason)
        event = {"loss": 1.0, "step_seconds": self.step_seconds(config)}
        events = "".join(json.dumps({**event, "step": step}) + "\n" for step in (1, 2, 3))
        figures = {"val_loss_last": self.losses(config.optimizer.lr)}
        return self._end(config, {"figures": figures}, {"events/000.jsonl": events})

    def generate(self, config: GenerateConfig) -> dict[str, Any]:
        group = {"attempt": 1, "group": 0, "device": "a CPU", "load_seconds": 5.0}
        seconds = [99.0, *(config.sampler.steps / config.ranks * factor for factor in self.spread)]
        rows = [{**group, "file": f"{i}.mkv", "seconds": {"denoise": s}} for i, s in enumerate(seconds)]
        return self._end(config, {}, {"seconds.json": json.dumps({"videos": rows})})

    def family(self, config: FamilyConfig) -> dict[str, Any]:
        rows = [{"attempt": 1, "group": 0, "device": "a CPU", "load_seconds": 1.0, "seconds": {"video": 7.0}}] * 3
        return self._end(config, {}, {"seconds.json": json.dumps({"videos": rows})})

    def evaluate(self, config: EvaluateConfig) -> dict[str, Any]:
        return self._end(config, {}, {"metrics.json": json.dumps(self.record(config).to_json())})

    def _end(self, config: JobConfig, result: dict[str, Any], files: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Leave a run as it ends; plain writes, since those of a run wait for the disk."""
        self.ran.append(config.name)
        folder = Path(config.storage) / "runs" / config.name
        ended = {"schema": RESULT_SCHEMA, "status": COMPLETE, "outputs": {}, "figures": {}, **result}
        for name, text in {"run.json": "{}", **(files or {}), "result.json": json.dumps(ended)}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return ended

    def record(self, config: EvaluateConfig) -> MetricsRecord:
        baseline, *arms = config.arms
        values, comparisons = [], []
        for metric in config.metrics:
            if metric in self.unmeasured:
                values += [self.absent(metric, arm) for arm in config.arms]
                continue
            values.append(self.value(metric, baseline, 2.0))
            for arm in arms:
                difference, error = self.measure(config, metric)
                values.append(self.value(metric, arm, 2.0 + difference))
                reach = 2 * error
                interval = IntervalRecord(
                    low=difference - reach,
                    high=difference + reach,
                    level=0.95,
                    standard_error=error,
                    degrees_of_freedom=7,
                )
                reason = "no valid interval: FVD is biased by about 1/n" if metric.startswith("fvd") else None
                comparisons.append(
                    Comparison.of(
                        metric,
                        arm,
                        baseline,
                        difference,
                        interval=None if reason else interval,
                        reason=reason,
                        n=8,
                        groups=8,
                    )
                )
        return MetricsRecord.model_validate(
            {
                "schema": SCHEMA,
                "code_version": "0",
                "arms": list(config.arms),
                "definitions": {name: definition(name) for name in config.metrics},
                "values": values,
                "comparisons": comparisons,
                "warnings": [],
                "environment": {},
            }
        )

    def value(self, metric: str, arm: str, value: float) -> Value:
        real = 3.0 if catalogue.METRICS[metric].direction == "match" else None
        return Value(metric=metric, arm=arm, value=value, real=real, n_real=8, n=8, groups=8)

    def absent(self, metric: str, arm: str) -> Value:
        reason = "no weights: a file is not there"
        return Value(metric=metric, arm=arm, value=None, reason=reason, n_real=8, n=8, groups=8)


def definition(name: str) -> Definition:
    metric = catalogue.find(name)
    texts = dict.fromkeys(("description", "frames", "preprocessing_sha256", "decoder", "dtype", "device"), "")
    fields = {"label": metric.label, "direction": metric.direction, "primary": metric.primary, "needs": metric.needs}
    return Definition.model_validate(
        {"metric": name, "version": 1, "weights": {}, "preprocessing": {}, **fields, **texts}
    )


def grid_of(config: StudyConfig, jobs: FakeJobs | None = None) -> Grid:
    return Grid(config, Cells(config.storage, (jobs or FakeJobs()).jobs), INPUTS)
