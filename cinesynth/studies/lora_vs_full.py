"""`lora_vs_full`: an adapter against all weights trained, each at its own best learning rate.

Both arms train equally many steps; and once more, the faster one trains as many steps as it does in the time that the
slower one takes for these. Seconds a step are medians of what the trainings took here.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median
from typing import Literal

from cinesynth.metrics.catalogue import label
from cinesynth.report.page import number
from cinesynth.studies.cells import Cell
from cinesynth.studies.findings import (
    EMPTY,
    UNAVAILABLE,
    Chart,
    Difference,
    Findings,
    Mark,
    Table,
    conclusions,
    fewer_seeds,
    joined,
    seeds,
    told,
    unsaid,
)
from cinesynth.studies.grid import Grid
from cinesynth.studies.inputs import too_large

FULL_METRICS = ("kvd_128f", "fvd_128f", "fid_128f", "motion_score")
"""The metrics that carry the question, and what is read beside them."""

Arm = Literal["lora", "full"]
Budget = Literal["steps", "time"]
ARMS: tuple[Arm, ...] = ("lora", "full")
BUDGETS: dict[Budget, str] = {"steps": "equal steps", "time": "equal time"}


def cells(grid: Grid) -> list[Cell]:
    """The small grid of learning rates of both arms; then, of each seed and budget, both arms against the base and
    against each other."""
    found = [cell for arm in ARMS for cell in lr_trials(grid, arm).values()]
    for budget in BUDGETS:
        for seed in grid.config.seeds:
            found += [c for arm in ARMS if (c := against_base(grid, arm, budget, seed)) is not None]
            if (pair := against_lora(grid, budget, seed)) is not None:
                found.append(pair)
    return found


def refusal(grid: Grid) -> str:
    """Why all weights are not trained; empty where they may be."""
    if not (arithmetic := too_large(grid.inputs.full, grid.config.train.use_gpu)):
        return ""
    return f"full fine-tuning is not sharded yet, and does not fit on one device: {arithmetic}"


def training(grid: Grid, arm: Arm, factor: float, seed: int, steps: int | None = None) -> Cell:
    """A training of an arm."""
    config = grid.config
    if arm == "lora":
        return grid.adapter(config.train.lora.rank, seed, factor, steps)
    lr = float(f"{config.full.lr * factor:.6g}")
    changes = {"mode": "full", "strategy": "replicate", "validation_videos": None, "merge": False}
    return grid.training(changes, lr, seed, steps, f"all weights, lr {lr:g}, seed {seed}", refusal(grid))


def lr_trials(grid: Grid, arm: Arm) -> dict[float, Cell]:
    """The trainings that an arm's learning rate is chosen by."""
    return {factor: training(grid, arm, factor, grid.config.seeds[0]) for factor in grid.config.lr_factors}


def trained(grid: Grid, arm: Arm, budget: Budget, seed: int) -> Cell | None:
    """The training of an arm with its best learning rate; None where that, or its steps, are not known yet."""
    factor = grid.lowest(lr_trials(grid, arm))
    if factor is None:
        return None
    steps = equal_time_steps(grid)[arm] if budget == "time" and equal_time_steps(grid) else None
    if budget == "time" and steps is None:
        return None
    return training(grid, arm, factor, seed, None if steps == grid.config.train.optimizer.steps else steps)


def equal_time_steps(grid: Grid) -> dict[Arm, int]:
    """Steps of each arm in the time that the slower one takes for those of the configuration; empty where the speed of
    an arm is not known yet."""
    seconds = {arm: step_seconds(grid, arm) for arm in ARMS}
    slowest = max((s for s in seconds.values() if s is not None), default=0.0)
    steps = grid.config.train.optimizer.steps
    found = {arm: round(steps * slowest / s) for arm, s in seconds.items() if s}
    return found if len(found) == len(ARMS) else {}


def step_seconds(grid: Grid, arm: Arm) -> float | None:
    """Seconds of a step, the median over the trainings of all seeds; None where one of them is not complete."""
    cells_of = [trained(grid, arm, "steps", seed) for seed in grid.config.seeds]
    found = [None if cell is None else grid.step_seconds(cell) for cell in cells_of]
    known = [seconds for seconds in found if seconds is not None]
    return median(known) if len(known) == len(found) else None


def videos(grid: Grid, arm: Arm, budget: Budget, seed: int) -> Cell | None:
    """The long clips made by an arm."""
    cell = trained(grid, arm, budget, seed)
    return None if cell is None else grid.videos(cell, grid.config.long)


def against_base(grid: Grid, arm: Arm, budget: Budget, seed: int) -> Cell | None:
    """An arm's long clips against the base's."""
    made, long = videos(grid, arm, budget, seed), grid.config.long
    return None if made is None else grid.compared({"base": grid.videos(None, long), arm: made}, long, FULL_METRICS)


def against_lora(grid: Grid, budget: Budget, seed: int) -> Cell | None:
    """The long clips of the full model against those of the adapter."""
    made = {arm: videos(grid, arm, budget, seed) for arm in ARMS}
    arms = {str(arm): cell for arm, cell in made.items() if cell is not None}
    return grid.compared(arms, grid.config.long, FULL_METRICS) if len(arms) == len(ARMS) else None


def findings(grid: Grid) -> Findings:
    """What the finished cells show."""
    return Findings(_shows(grid), [_arms(grid), *_metrics(grid)], _charts(grid), _warnings(grid))


def _arms(grid: Grid) -> Table:
    rows = []
    for budget, name in BUDGETS.items():
        for arm in ARMS:
            factor, seconds = grid.lowest(lr_trials(grid, arm)), step_seconds(grid, arm)
            cell = trained(grid, arm, budget, grid.config.seeds[0])
            if cell is None or factor is None:
                rows.append([name, arm, *[EMPTY] * 5])
                continue
            optimizer, outcome = cell.config.optimizer, grid.cells.outcome(cell)  # type: ignore[attr-defined]
            loss = None if outcome.result is None else outcome.result["figures"].get("val_loss_last")
            spent = None if seconds is None else seconds * optimizer.steps
            speed = [number(seconds, 3), number(spent, 3)]
            rows.append([name, arm, f"{optimizer.lr:g}", f"{optimizer.steps:,}", *speed, number(loss)])
    columns = ["budget", "arm", "best lr on val", "steps", "seconds a step", "seconds of steps", "held-out loss"]
    return Table("What was trained", columns, rows, "The held-out loss is that of the first seed.")


def _metrics(grid: Grid) -> list[Table]:
    rows = []
    for metric in FULL_METRICS:
        for budget, name in BUDGETS.items():
            pairs = [against_lora(grid, budget, seed) for seed in grid.config.seeds]
            alone = {arm: [against_base(grid, arm, budget, seed) for seed in grid.config.seeds] for arm in ARMS}
            is_absent = bool(grid.unavailable([*pairs, *alone["lora"]], metric))
            values = [
                ", ".join(number(v.value) for v in grid.values(found, metric, arm)) for arm, found in alone.items()
            ]
            base = grid.values(alone["lora"], metric, "base")
            difference = grid.difference(pairs, metric, "full")
            shown = [number(base[0].value) if base else EMPTY, *(value or EMPTY for value in values), told(difference)]
            counts = "–" if difference is None else f"{seeds(difference)}; N {difference.n}"
            rows.append([label(metric), name, *([UNAVAILABLE] * 4 if is_absent else shown), counts])
    columns = ["metric", "budget", "base", "LoRA, each seed", "full, each seed", "full − LoRA", "each seed"]
    return [
        Table("Long clips", columns, rows, f"Of {grid.config.long}, on the first 128 frames where the name says so.")
    ]


def _shows(grid: Grid) -> list[str]:
    if why := refusal(grid):
        return [f"Nothing can be said of LoRA against full fine-tuning on {grid.config.model}: {why}."]
    asked, missing, bounds = [], {}, []
    for budget, name in BUDGETS.items():
        for metric in ("kvd_128f", "fvd_128f", "fid_128f"):
            pairs = [against_lora(grid, budget, seed) for seed in grid.config.seeds]
            what = f"{label(metric)}, full − LoRA, {name}"
            if why := grid.unavailable(pairs, metric):
                missing[label(metric)] = why
                continue
            difference = grid.difference(pairs, metric, "full")
            lower = "full fine-tuning is closer to the real clips"
            asked.append(Difference(what, difference, lower, "LoRA is closer to the real clips"))
            if difference is not None and difference.low is not None and not difference.is_shown:
                bounds.append(f"{number(max(0.0, -difference.low))} ({label(metric)}, {name})")
    counted = grid.counted([against_lora(grid, "steps", s) for s in grid.config.seeds], f"Clips of {grid.config.long}")
    found = [counted, *conclusions(asked), *unsaid(missing)]
    if bounds:
        most = f"full fine-tuning may be closer by up to {joined(bounds)}"
        found.append(f"An interval that holds zero is no proof that LoRA reaches it: {most}.")
    return found


def _charts(grid: Grid) -> list[Chart]:
    charts = []
    for metric in FULL_METRICS:
        series: dict[str, list[Mark]] = {}
        for arm in ARMS:
            for budget, name in BUDGETS.items():
                cell, seconds = trained(grid, arm, budget, grid.config.seeds[0]), step_seconds(grid, arm)
                found = [against_base(grid, arm, budget, seed) for seed in grid.config.seeds]
                values = [float(v.value) for v in grid.values(found, metric, arm) if v.value is not None]
                if cell is None or seconds is None or not values:
                    continue
                spent = seconds * cell.config.optimizer.steps  # type: ignore[attr-defined]
                word = ", ".join(filter(None, (name, fewer_seeds(len(values), len(grid.config.seeds)))))
                marks, mark = series.setdefault(arm, []), Mark(spent, fmean(values), min(values), max(values), word)
                if marks and replace(marks[-1], word=word) == mark:  # the slower arm has one training for both budgets
                    marks[-1] = replace(mark, word=f"{marks[-1].word}, {word}")
                else:
                    marks.append(mark)
        if series:
            note = "Means over seeds; bars go from the lowest seed to the highest."
            charts.append(Chart(label(metric), "seconds of optimiser steps", label(metric), series, note=note))
    return charts


def _warnings(grid: Grid) -> list[str]:
    found = []
    if why := refusal(grid):
        found.append(f"The cells of full fine-tuning are refused: {why}.")
    counts = {
        v.n for seed in grid.config.seeds for v in grid.values([against_lora(grid, "steps", seed)], "fvd_128f", "full")
    }
    if counts and min(counts) < 400:
        found.append(
            f"FVD-128 of {min(counts)} videos is mostly bias (400 dimensions): read KVD on 128 frames beside it."
        )
    rank = grid.config.train.lora.rank
    found.append(
        f"One rank ({rank}) and one small grid of learning rates for each arm: either may do better with others."
    )
    return found
