"""Stand-ins for the drivers of a study's cells: each opens its run and leaves the result that a real one leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cinesynth.config import EvaluateConfig, GenerateConfig, TrainConfig
from cinesynth.errors import TrainingError
from cinesynth.metrics import catalogue
from cinesynth.metrics.record import Comparison, Definition, IntervalRecord, MetricsRecord, Value
from cinesynth.runs import Run, records_its_end
from cinesynth.settings import parse_config
from cinesynth.studies.cells import Cells
from cinesynth.studies.config import StudyConfig
from cinesynth.studies.grid import Grid
from cinesynth.studies.inputs import Inputs

INPUTS = Inputs("base", 9_000_000, {"home": "hash-home", "away": "hash-away", "long": "hash-long"})

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
    """

    def __init__(
        self,
        measure: Measure = no_difference,
        losses: Callable[[float], float] = lambda lr: lr,
        fails: Callable[[TrainConfig], bool] = lambda config: False,
        step_seconds: Callable[[TrainConfig], float] = lambda config: 0.1,
    ) -> None:
        self.measure, self.losses, self.fails, self.step_seconds = measure, losses, fails, step_seconds
        self.ran: list[str] = []

    def __getitem__(self, kind: str) -> Callable[[Any], dict[str, Any]]:
        return {"train": self.train, "generate": self.generate, "evaluate": self.evaluate}[kind]

    @property
    def jobs(self) -> Any:
        return {kind: records_its_end(self[kind]) for kind in ("train", "generate", "evaluate")}

    def train(self, config: TrainConfig) -> dict[str, Any]:
        run = Run.open(config)
        self.ran.append(config.name)
        if self.fails(config):
            raise TrainingError("step 3: loss nan; lower <lr>")
        seconds = self.step_seconds(config)
        steps = [{"step": i, "loss": 1.0, "step_seconds": seconds} for i in range(1, 4)]
        run.write_events("train-000", steps)
        return run.finish({}, {"val_loss_last": self.losses(config.optimizer.lr), "steps": config.optimizer.steps})

    def generate(self, config: GenerateConfig) -> dict[str, Any]:
        run = Run.open(config)
        self.ran.append(config.name)
        seconds = 1.0 + config.sampler.steps / config.ranks
        rows = [
            {"attempt": 1, "file": f"{i}.mkv", "group": 0, "load_seconds": 5.0, "seconds": {"denoise": seconds}}
            for i in range(6)
        ]
        rows[0]["seconds"] = {"denoise": 100.0}
        run.folder.write_json("seconds.json", {"videos": rows})
        return run.finish({}, {"videos": 8})

    def evaluate(self, config: EvaluateConfig) -> dict[str, Any]:
        run = Run.open(config)
        self.ran.append(config.name)
        run.folder.write_json("metrics.json", self.record(config).to_json())
        return run.finish({}, {})

    def record(self, config: EvaluateConfig) -> MetricsRecord:
        baseline, *arms = config.arms
        values, comparisons = [], []
        for metric in config.metrics:
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
                        metric, arm, baseline, difference, interval=None if reason else interval, reason=reason, n=8, groups=8
                    )
                )
        return MetricsRecord.model_validate(
            {
                "schema": 2,
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


def definition(name: str) -> Definition:
    metric = catalogue.find(name)
    texts = dict.fromkeys(("description", "frames", "preprocessing_sha256", "decoder", "dtype", "device"), "")
    fields = {"label": metric.label, "direction": metric.direction, "primary": metric.primary, "needs": metric.needs}
    return Definition.model_validate({"metric": name, "version": 1, "weights": {}, "preprocessing": {}, **fields, **texts})


def grid_of(config: StudyConfig, jobs: FakeJobs | None = None) -> Grid:
    return Grid(config, Cells(config.storage, (jobs or FakeJobs()).jobs), INPUTS)
