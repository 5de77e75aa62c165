"""What the trials of a study say: the front, the noise, and the trial to take."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from cinesynth.config import TuneConfig
from cinesynth.errors import ConfigError
from tune.front import Values, better_in, front, hypervolume, recommend
from tune.records import Record, Records
from tune.space import Point, first_trials


@dataclass(frozen=True)
class Outcome:
    """What the trials of a study say.

    Attributes:
        values: both objectives by trial, of all that have them.
        front: trials that no other beats.
        baseline: the baseline's trial with the study's own seed, or with the next one that has both objectives; None
            where no training of it has.
        no_baseline: why there is none; empty where there is one.
        recommended: the trial to take.
        rivals: trials that are better than the baseline in an objective, by more than the noise.
        point: what that was trained with.
        noise: standard deviation of each objective over the baseline's seeds.
        hypervolume: of the front, below the base model's values.
    """

    values: dict[str, Values]
    front: list[str]
    baseline: str | None
    no_baseline: str
    recommended: str
    rivals: list[str]
    point: Point
    noise: Values
    hypervolume: float


def outcome(config: TuneConfig, records: Records, base: dict[str, float]) -> Outcome:
    """The front and the recommendation. Raises ConfigError where no trial has both objectives."""
    known = records.read()
    values = {name: v for name, record in known.items() if (v := record.values(config.objectives)) is not None}
    if not values:
        reasons = "; ".join(f"{r.name}: {r.facts.get('reason')}" for r in list(known.values())[:3])
        raise ConfigError(f"study {config.name!r}: no trial has both objectives ({reasons})")
    seeds, _ = first_trials(config)
    of_baseline = {name: values[name] for trial in seeds if (name := trial.name(config.name)) in values}
    baseline = next(iter(of_baseline), None)
    spread = [
        statistics.stdev(axis) if len(of_baseline) > 1 else 0.0 for axis in zip(*of_baseline.values(), strict=True)
    ]
    noise = (spread[0], spread[1]) if spread else (0.0, 0.0)
    # Other seeds of the baseline say how large the noise is; they are no points of the search.
    searched = {n: v for n, v in values.items() if known[n].trial.seed == config.train.seed or n == baseline}
    taken = recommend(searched, {name: known[name].trial.point.rank for name in searched}, noise)
    reference = base[config.objectives[0]], base[config.objectives[1]]
    area = hypervolume(list(searched.values()), reference)
    return Outcome(
        values=values,
        front=front(searched),
        baseline=baseline,
        no_baseline="" if baseline is not None else _why_none(known, seeds[0].name(config.name)),
        recommended=taken,
        rivals=[] if baseline is None else [n for n, v in searched.items() if better_in(v, values[baseline], noise)],
        point=known[taken].trial.point,
        noise=noise,
        hypervolume=area,
    )


def _why_none(known: dict[str, Record], baseline: str) -> str:
    """Why the baseline has not both objectives, in words."""
    record = known.get(baseline)
    if record is None:
        return f"{baseline} was not trained to its end"
    return f"{baseline} ended {record.status} ({record.facts.get('reason', 'without both objectives')})"
