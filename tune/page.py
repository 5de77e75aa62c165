"""The page of a study: the front, what was recommended, whether that holds on the test split, and every trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from markupsafe import Markup

from cinesynth.config import TuneConfig
from cinesynth.metrics.catalogue import label
from cinesynth.metrics.record import MetricsRecord
from cinesynth.report.curves import front_chart, progress_curve, slice_chart
from cinesynth.report.page import number, write_page
from cinesynth.report.values import comparison_rows
from cinesynth.runs import Run
from tune.front import hypervolume
from tune.outcome import Outcome
from tune.records import Record, Records
from tune.space import Point, distributions, params_of

_FEW = 400
"""Videos below which FVD is mostly bias."""
_ENOUGH = 50
"""Trials from which on an importance is computed: PED-ANOVA wants at least five in its top decile."""


def write_study_page(
    config: TuneConfig,
    run: Run,
    records: Records,
    base: dict[str, float],
    found: Outcome,
    final: MetricsRecord | None,
) -> str:
    """Write `report.html` into the study's folder; returns its uri."""
    known = records.read()
    labels = (label(config.objectives[0]), label(config.objectives[1]))
    marked = {found.recommended: "recommended"}
    if found.baseline is not None:
        marked[found.baseline] = "baseline, recommended" if found.baseline == found.recommended else "baseline"
    return write_page(
        run.folder,
        "report.html",
        "tune.html.j2",
        config=config,
        run=run,
        found=found,
        known=known,
        verdict=verdict(config, found, final),
        labels=labels,
        front_svg=front_chart(found.values, found.front, marked, found.noise, labels),
        hypervolume_svg=_over_time(config, known, base),
        slices=_slices(config, known),
        orders=orders(known),
        importance=_importance(config, known),
        rows=_rows(known),
        columns=list(dict.fromkeys(label(name) for record in known.values() for name in record.figures)),
        base=base,
        videos=max((record.facts.get("windows", 0) for record in known.values()), default=0),
        few=_FEW,
        final=final,
        final_rows=[] if final is None else comparison_rows(final),
    )


def verdict(config: TuneConfig, found: Outcome, final: MetricsRecord | None) -> str:
    """What the study allows to be said, in a sentence or two."""
    point = found.point.told()
    if found.recommended == found.baseline:
        beyond = " beyond its noise" if any(found.noise) else ""
        if not found.rivals:
            return f"No trial beats the baseline{beyond}: it is recommended as it is ({point})."
        rivals = f"{len(found.rivals)} {'trial is' if len(found.rivals) == 1 else 'trials are'}"
        return (
            f"{rivals} better than the baseline{beyond} in one objective, and worse in the other: the baseline is "
            f"recommended as it is ({point})."
        )
    if found.baseline is None:
        return (
            f"Recommended is {point}, by one training on the val split. There is no baseline to compare it with: "
            f"{found.no_baseline}."
        )
    if final is None:
        return f"Recommended is {point}, by one training on the val split. It was not compared anew: final_seeds is 0."
    told = []
    for c in final.comparisons:
        if c.metric in config.objectives and c.difference is not None:
            span = f" [{number(c.interval.low)}, {number(c.interval.high)}]" if c.interval else ", no interval"
            told.append(f"{final.label(c.metric)} {c.difference:+.4g}{span}")
    shown = is_shown(final, config.objectives)
    says = "holds on the test split" if shown else "is not shown on the test split, so the baseline is kept"
    return f"Recommended is {point}. Trained anew against the baseline, its advantage {says}: {'; '.join(told)}."


def is_shown(final: MetricsRecord, objectives: tuple[str, str]) -> bool:
    """Whether an interval shows the recommended point to be better in an objective, and in none to be worse."""
    better = [final.better(c) for c in final.comparisons if c.metric in objectives and c.excludes_zero]
    return "recommended" in better and "baseline" not in better


def orders(known: dict[str, Record]) -> str:
    """Whether FVD and KVD put the trials in the same order, in words; empty where either is missing."""
    pairs = [(r.figures["fvd"], r.figures["kvd"]) for r in known.values() if {"fvd", "kvd"} <= r.figures.keys()]
    if len(pairs) < 3:
        return ""
    alike = total = 0
    for place, (fvd, kvd) in enumerate(pairs):
        for other_fvd, other_kvd in pairs[:place]:
            if fvd != other_fvd and kvd != other_kvd:
                total += 1
                alike += (fvd < other_fvd) == (kvd < other_kvd)
    return f"FVD and KVD agree on the order of {alike} of {total} pairs of trials." if total else ""


def _over_time(config: TuneConfig, known: dict[str, Record], base: dict[str, float]) -> Markup | None:
    reference = base[config.objectives[0]], base[config.objectives[1]]
    points, areas = [], []
    for record in known.values():
        values = record.values(config.objectives)
        if values is not None and record.trial.seed == config.train.seed:
            points.append(values)
            areas.append(hypervolume(points, reference))
    if len(areas) < 2:
        return None
    return progress_curve({"hypervolume": (range(1, len(areas) + 1), areas)}, "hypervolume", "trials")


def _slices(config: TuneConfig, known: dict[str, Record]) -> list[tuple[str, Markup]]:
    found = []
    ended = [r for r in known.values() if r.values(config.objectives) is not None]
    for name in ("rank", "alpha", "lr", "shift"):
        settings = [float(getattr(record.trial.point, name)) for record in ended]
        if len(set(settings)) < 2:
            continue
        values = {
            label(objective): [(x, r.figures[objective]) for x, r in zip(settings, ended, strict=True)]
            for objective in config.objectives
        }
        found.append((name, slice_chart(values, name, name != "shift")))
    return found


def _importance(config: TuneConfig, known: dict[str, Record]) -> list[tuple[str, str, float]]:
    """(objective, setting, share) by PED-ANOVA; empty for too few trials."""
    baseline = Point.of(config.train)
    tried = {
        record.name: (record.trial.point, values)
        for record in known.values()
        if record.trial.seed == config.train.seed and (values := record.values(config.objectives)) is not None
    }
    if len(tried) < _ENOUGH:
        return []
    study = optuna.create_study(directions=["minimize", "minimize"])
    for name, (point, values) in tried.items():
        params = params_of(point, config.space, baseline, name)
        study.add_trial(
            optuna.trial.create_trial(values=list(values), params=params, distributions=distributions(config.space))
        )
    found = []
    for place, objective in enumerate(config.objectives):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator")  # low values are what is wanted
            shares = optuna.importance.get_param_importances(study, target=_value_of(place))
        found += [(label(objective), name, share) for name, share in shares.items()]
    return found


def _value_of(place: int) -> Callable[[optuna.trial.FrozenTrial], float]:
    return lambda trial: float(trial.values[place])


def _rows(known: dict[str, Record]) -> list[tuple[Record, dict[str, float]]]:
    return [(record, {label(name): value for name, value in record.figures.items()}) for record in known.values()]
