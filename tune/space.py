"""Points of a search: where they may lie, what they are called, and the training that each stands for."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cinesynth.config import SearchPoint, SearchSpace, TrainConfig, TrainSettings, TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.settings import parse_config
from cinesynth.storage import sha256_json

_DIGITS = 4
"""Significant digits of a sampled number, so that its text names it."""
_ROUNDING = 10.0 ** (1 - _DIGITS)
"""By how much rounding may carry a number past an end of its span."""


@dataclass(frozen=True)
class Point:
    """What a trial trains with."""

    rank: int
    alpha: float
    lr: float
    shift: float
    targets: str | tuple[str, ...]

    @classmethod
    def of(cls, train: TrainSettings) -> Point:
        """The baseline: a stage as it stands."""
        lora = train.lora
        return cls(lora.rank, float(lora.alpha), float(train.optimizer.lr), float(train.flow.shift), lora.targets)

    def moved(self, to: SearchPoint) -> Point:
        """This point with what another one names."""
        given = {name: value for name, value in to.model_dump().items() if value is not None}
        return Point(**{**asdict(self), **given})

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"targets": self.targets if isinstance(self.targets, str) else list(self.targets)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Point:
        """Inverse of `to_json`."""
        targets = value["targets"]
        return cls(**{**value, "targets": targets if isinstance(targets, str) else tuple(targets)})

    def told(self) -> str:
        """In words, without targets and shift where nothing searches them."""
        return f"rank {self.rank}, alpha {self.alpha:g}, lr {self.lr:g}"


@dataclass(frozen=True)
class Trial:
    """A point and the seed that it is trained with."""

    point: Point
    seed: int

    def name(self, study: str) -> str:
        """The name of its train run."""
        return f"{study}-{sha256_json([self.point.to_json(), self.seed])[:10]}"


def training_of(config: TuneConfig, trial: Trial, name: str | None = None) -> TrainConfig:
    """The train run of a trial; its paths are those of the study."""
    point, train = trial.point, config.train
    values = train.model_dump(mode="json")
    values["lora"] |= {"rank": point.rank, "alpha": point.alpha, "targets": point.targets}
    values["optimizer"] |= {"lr": point.lr}
    values["flow"] |= {"shift": point.shift}
    common = {
        "name": name or trial.name(config.name),
        "storage": config.storage,
        "ray": config.ray.model_dump(),
        "model": config.model,
        "dataset": config.dataset,
        "seed": trial.seed,
    }
    return parse_config(TrainConfig, values | common, where="trial")


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distributions of what is searched. A rank is its logarithm to base 2."""
    found: dict[str, BaseDistribution] = {}
    if space.rank:
        found["log2_rank"] = IntDistribution(int(math.log2(space.rank[0])), int(math.log2(space.rank[1])))
    for name, span in (("alpha", space.alpha), ("alpha_over_rank", space.alpha_over_rank), ("lr", space.lr)):
        if span:
            found[name] = FloatDistribution(*span, log=True)
    if space.shift:
        found["shift"] = FloatDistribution(*space.shift)
    if space.targets:
        found["targets"] = CategoricalDistribution([_text(choice) for choice in space.targets])
    return found


def point_of(params: dict[str, Any], space: SearchSpace, baseline: Point) -> Point:
    """The point that Optuna's parameters stand for."""
    rank = 2 ** params["log2_rank"] if "log2_rank" in params else baseline.rank
    alpha = baseline.alpha
    if "alpha" in params:
        alpha = _rounded(params["alpha"])
    elif "alpha_over_rank" in params:
        alpha = _rounded(params["alpha_over_rank"] * rank)
    choices = {_text(choice): choice for choice in space.targets or ()}
    return Point(
        rank,
        alpha,
        _rounded(params["lr"]) if "lr" in params else baseline.lr,
        _rounded(params["shift"]) if "shift" in params else baseline.shift,
        choices[params["targets"]] if "targets" in params else baseline.targets,
    )


def params_of(point: Point, space: SearchSpace, baseline: Point, what: str) -> dict[str, Any]:
    """Optuna's parameters of a point. Raises ConfigError, with `what` it is, where it does not lie in the space."""
    params: dict[str, Any] = {}
    rank = math.log2(point.rank)
    values = {
        "log2_rank": int(rank) if rank == int(rank) else rank,
        "alpha": point.alpha,
        "alpha_over_rank": point.alpha / point.rank,
        "lr": point.lr,
        "shift": point.shift,
        "targets": _text(point.targets),
    }
    spans = {"log2_rank": space.rank, "targets": [_text(choice) for choice in space.targets or ()]}
    for name, distribution in distributions(space).items():
        value = values[name]
        if not _holds(distribution, value):
            span = spans.get(name, getattr(space, name, None))
            shown = point.rank if name == "log2_rank" else value
            raise ConfigError(
                f"space.{'rank' if name == 'log2_rank' else name}: {what} has {shown}, which is not within {span}; "
                "widen the space, or change the point"
            )
        if isinstance(distribution, FloatDistribution):
            value = min(max(value, distribution.low), distribution.high)
        params[name] = value
    fixed = {"rank": "log2_rank", "lr": "lr", "shift": "shift", "targets": "targets"}
    for field, name in fixed.items():
        if name not in params and getattr(point, field) != getattr(baseline, field):
            raise ConfigError(
                f"space.{field}: {what} has {getattr(point, field)}, but nothing searches it; give a span"
            )
    return params


class PointsOfParams:
    """The points that Optuna's parameters stand for, where the baseline and the given points keep all their digits.

    A drawn number is rounded. Parameters that are those of a given point, or like them once they are rounded, stand for
    just that point, so that it is trained as it was given and under its own name.

    Args:
        config: of the study. Raises ConfigError where a given point lies outside the space.
    """

    def __init__(self, config: TuneConfig) -> None:
        self._space, self.baseline = config.space, Point.of(config.train)
        self._given: dict[frozenset[tuple[str, Any]], Point] = {}
        self._alike: dict[Point, Point] = {}
        self._add(self.baseline, "the baseline (train)")
        self.given = [self._add(self.baseline.moved(to), f"points.{i}") for i, to in enumerate(config.points)]

    def __call__(self, params: dict[str, Any]) -> Point:
        """The point of these parameters."""
        if (given := self._given.get(frozenset(params.items()))) is not None:
            return given
        drawn = point_of(params, self._space, self.baseline)
        return self._alike.get(drawn, drawn)

    def _add(self, point: Point, what: str) -> Point:
        """Take a given point; returns the one before it that has the same parameters, else this one."""
        params = params_of(point, self._space, self.baseline, what)
        self._alike.setdefault(point_of(params, self._space, self.baseline), point)
        return self._given.setdefault(frozenset(params.items()), point)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if isinstance(distribution, IntDistribution) and not isinstance(value, int):
        return False
    return distribution.low * (1 - _ROUNDING) <= value <= distribution.high * (1 + _ROUNDING)


def first_trials(config: TuneConfig) -> tuple[list[Trial], list[Point]]:
    """(the baseline with each of its seeds, the given points). Raises ConfigError for one outside the space."""
    points = PointsOfParams(config)
    seeds = range(config.train.seed, config.train.seed + config.baseline_seeds)
    return [Trial(points.baseline, seed) for seed in seeds], points.given


def every_point(config: TuneConfig) -> list[Point] | None:
    """All points of a grid, or of a space that has only finitely many, in a drawn order; None of any other."""
    values = config.grid_values if config.method == "grid" else 1
    axes: dict[str, list[Any]] = {}
    for name, distribution in distributions(config.space).items():
        if isinstance(distribution, IntDistribution):
            axes[name] = list(range(distribution.low, distribution.high + 1))
        elif isinstance(distribution, CategoricalDistribution):
            axes[name] = list(distribution.choices)
        else:
            assert isinstance(distribution, FloatDistribution)
            if distribution.low == distribution.high:
                axes[name] = [distribution.low]
            elif values == 1:
                return None
            else:
                axes[name] = _spread(distribution, values)
    point = PointsOfParams(config)
    points = [point(dict(zip(axes, chosen, strict=True))) for chosen in itertools.product(*axes.values())]
    random.Random(config.seed).shuffle(points)
    return list(dict.fromkeys(points))


def _spread(span: FloatDistribution, count: int) -> list[float]:
    low, high = (math.log(span.low), math.log(span.high)) if span.log else (span.low, span.high)
    inner = [low + (high - low) * i / (count - 1) for i in range(1, count - 1)]
    return [span.low, *(math.exp(value) if span.log else value for value in inner), span.high]


def wanted_points(config: TuneConfig) -> int:
    """How many points a study tries: its budget, or all that there are."""
    every = every_point(config)
    if every is None:
        return config.budget.trials
    seeds, points = first_trials(config)
    return min(config.budget.trials, len({seeds[0].point, *points, *every}))


def make_sampler(config: TuneConfig, done: int) -> optuna.samplers.BaseSampler:
    """What draws the points. A study that goes on draws others than those before.

    Args:
        config: of the study.
        done: trials that the study has.
    """
    seed = int.from_bytes(sha256_json([config.seed, done]).encode()[:4], "big")
    if config.method != "tpe":  # of a grid nothing is drawn
        return optuna.samplers.RandomSampler(seed=seed)
    start_up = max(1, config.budget.trials // 3)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=start_up)


def _text(targets: str | Iterable[str]) -> str:
    return targets if isinstance(targets, str) else "+".join(targets)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
