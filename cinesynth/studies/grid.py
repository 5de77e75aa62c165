"""The grid that studies share: adapters by rank and seed, their videos in both domains, and what these measure.

The learning rate is dealt with twice. `fixed`: every rank has that of `train.optimizer.lr`. `best`: every rank has that
of the small grid whose held-out loss (val split, first seed, last validation) is lowest; where two are equal, the lower
one. A rate whose training failed is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any, Literal

from cinesynth.config import EvaluateSettings, RaySettings, TrainConfig
from cinesynth.metrics import catalogue
from cinesynth.metrics.record import Comparison, MetricsRecord, Value
from cinesynth.outline import sized
from cinesynth.runs import read_events
from cinesynth.storage import Storage
from cinesynth.studies.cells import Cell, Cells, make_cell
from cinesynth.studies.config import StudyConfig
from cinesynth.studies.estimates import Estimate, over_seeds
from cinesynth.studies.families import folder_hash
from cinesynth.studies.inputs import Inputs
from cinesynth.train.events import training_steps

ALPHA_OVER_RANK = 2
GRID_METRICS = (
    "kvd",
    "fvd",
    "lpips",
    "r_lpips",
    "fid",
    "kid",
    "clip_fid",
    "clip_sim_text",
    "clip_sim_frames",
    "motion_score",
)
"""What the videos of the grid are measured by; each study reads those that it is about."""

Rule = Literal["fixed", "best"]
RULES: dict[Rule, str] = {"fixed": "fixed learning rate", "best": "best learning rate on val"}


class Grid:
    """The cells of a configuration.

    Args:
        config: of the study.
        cells: what there is of them.
        inputs: what they read.
    """

    def __init__(self, config: StudyConfig, cells: Cells, inputs: Inputs) -> None:
        self.config, self.cells, self.inputs = config, cells, inputs
        self._step_seconds: dict[str, float] = {}
        self._identities: dict[tuple[str, ...], dict[str, str]] = {}
        self._made: dict[str, Cell] = {}
        self._train, self._generate, self._evaluate = (
            part.model_dump(mode="json") for part in (config.train, config.generate, config.evaluate)
        )

    # --- trainings ---------------------------------------------------------------------------------------------

    def adapter(self, rank: int, seed: int, factor: float, steps: int | None = None) -> Cell:
        """The training of an adapter on the first domain.

        Args:
            rank: of the adapter; alpha is twice it.
            seed: of the training.
            factor: that the learning rate is varied by.
            steps: optimiser steps; default: those of the configuration.
        """
        lr = self.lr(factor)
        changes = {"lora": {"rank": rank, "alpha": float(ALPHA_OVER_RANK * rank)}}
        return self.training(changes, lr, seed, steps, f"rank {rank}, lr {lr:g}, seed {seed}")

    def training(
        self,
        changes: Mapping[str, Any],
        lr: float,
        seed: int,
        steps: int | None = None,
        what: str = "",
        refused: str = "",
    ) -> Cell:
        """A training on the first domain, with fields of `train` changed."""
        values, dataset = self._train, self.config.domains[self.config.home]
        optimizer: dict[str, Any] = {"lr": lr}
        if steps is not None:
            optimizer["steps"] = steps
            what += f", {steps} steps"
        nested = {"optimizer": {**values["optimizer"], **optimizer}}
        if "lora" in changes:
            nested["lora"] = {**values["lora"], **changes["lora"]}
        given = {**changes, **nested, "seed": seed, "model": self.config.model, "dataset": dataset}
        inputs = {"base": self.inputs.base, "dataset": self.inputs.datasets[dataset]}
        return self._cell("train", values, given, inputs, f"training: {what}", refused=refused)

    def lr(self, factor: float) -> float:
        """The learning rate of an adapter."""
        return float(f"{self.config.train.optimizer.lr * factor:.6g}")

    def lr_trials(self, rank: int) -> dict[float, Cell]:
        """The trainings that the learning rate of a rank is chosen by: factor to cell."""
        return {f: self.adapter(rank, self.config.seeds[0], f) for f in self.config.lr_factors}

    @property
    def rules(self) -> dict[Rule, str]:
        """The rules for the learning rate, and what they are called; one where both choose the same at every rank."""
        if all(self.factor("best", rank) == 1.0 for rank in self.config.ranks):
            return {"fixed": "fixed learning rate, the best on val too"}
        return RULES

    def factor(self, rule: Rule, rank: int) -> float | None:
        """The factor of a rank's learning rate; None where it is not known yet, or no training of it succeeded."""
        return 1.0 if rule == "fixed" else self.lowest(self.lr_trials(rank))

    def lowest(self, trials: Mapping[float, Cell]) -> float | None:
        """The factor whose held-out loss is lowest, once every trial is complete or has failed."""
        losses = {}
        for factor, cell in trials.items():
            outcome = self.cells.outcome(cell)
            if outcome.status in ("empty", "refused"):
                return None
            if outcome.result is not None and "val_loss_last" in outcome.result["figures"]:
                losses[factor] = float(outcome.result["figures"]["val_loss_last"])
        return min(losses, key=lambda factor: (losses[factor], factor), default=None)

    def step_seconds(self, cell: Cell) -> float | None:
        """Median seconds of a training's steps; None where it is not complete."""
        if not self.cells.outcome(cell).is_complete:
            return None
        if cell.name not in self._step_seconds:
            steps = training_steps(read_events(self.cells.folder(cell)))
            self._step_seconds[cell.name] = float(median(step["step_seconds"] for step in steps))
        return self._step_seconds[cell.name]

    # --- videos ------------------------------------------------------------------------------------------------

    def videos(
        self,
        made_by: Cell | None,
        dataset: str,
        changes: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
        what: str = "",
        refused: str = "",
    ) -> Cell:
        """The held-out windows of a dataset, made again by the base, with an adapter, or by a model trained whole.

        Args:
            made_by: the training of the adapter, or of the model; None: the base.
            dataset: as the configuration names it.
            changes: fields of `generate` that differ.
            also: what counts for this cell beside its identity.
            what: is varied, in words.
            refused: why it is never run.
        """
        whole = made_by is not None and isinstance(made_by.config, TrainConfig) and made_by.config.mode == "full"
        arm = "base" if made_by is None else "full" if whole else "adapter"
        given: dict[str, Any] = {"model": self.config.model, "dataset": dataset, **(changes or {})}
        given["arms"] = {arm: [] if made_by is None or whole else [{"ref": made_by.name}]}
        if made_by is not None and whole:
            given["model"] = Storage.below(self.config.storage, "runs", made_by.name, "model")
        inputs = {"base": self.inputs.base, "dataset": self.inputs.datasets[dataset], **(also or {})}
        by = "base" if made_by is None else made_by.what.removeprefix("training: ")
        told = f"videos of {dataset}: {by}" + (f", {what}" if what else "")
        needs = [] if made_by is None else [made_by]
        return self._cell("generate", self._generate, given, inputs, told, needs, refused)

    def family_videos(self, name: str, steps: int) -> Cell:
        """The windows of the first domain, made by a model of `latency.families`."""
        config, family = self.config, self.config.latency.families[name]
        dataset = config.domains[config.home]
        given = {
            "dataset": dataset,
            "split": config.generate.split,
            "max_windows": config.latency_windows(),
            "sampler": {**self._generate["sampler"], "steps": steps},
            "use_gpu": config.generate.use_gpu,
            "resources": self._generate["resources"],
        }
        inputs = {"dataset": self.inputs.datasets[dataset], "model": folder_hash(family.folder)}
        told = f"videos of {dataset}: {name}, {steps} steps"
        return self._cell("family", family.model_dump(mode="json"), given, inputs, told)

    def folder(self, videos: Cell, *parts: str) -> str:
        """Where a cell's videos lie: those of its arm, or of other `parts` of its run."""
        inside = parts or ("videos", arm_of(videos))
        return Storage.below(self.config.storage, "runs", videos.name, *inside)

    # --- measurements ------------------------------------------------------------------------------------------

    def compared(
        self, arms: Mapping[str, Cell], dataset: str, metrics: Sequence[str], frames: int | None = None
    ) -> Cell:
        """The videos of several cells against the real windows, by their first frames or all; differences are to the
        first."""
        given: dict[str, Any] = {"arms": {name: self.folder(cell) for name, cell in arms.items()}}
        given["real"] = {"dataset": dataset, "split": self.config.generate.split}
        if frames is not None:
            given["frames"] = frames
        inputs = {"dataset": self.inputs.datasets[dataset]}
        return self.evaluation(given, inputs, metrics, f"metrics of {dataset}: {_against(arms)}", list(arms.values()))

    def evaluation(
        self, given: Mapping[str, Any], inputs: Mapping[str, Any], metrics: Sequence[str], what: str, needs: list[Cell]
    ) -> Cell:
        """An evaluation by those of the metrics that there are weights for."""
        given = {**given, "metrics": self.possible(metrics)}
        # What defines a metric's numbers is among the run's inputs: another version of it is another cell.
        inputs = {**inputs, **self._metric_identity(tuple(given["metrics"]))}
        cell = self._cell("evaluate", self._evaluate, given, inputs, what, needs)
        if not is_local(cell, self.config):
            return cell
        return replace(cell, config=cell.config.model_copy(update={"ray": RaySettings()}))

    def _metric_identity(self, metrics: tuple[str, ...]) -> dict[str, str]:
        if metrics not in self._identities:
            settings = EvaluateSettings.model_validate({**self._evaluate, "metrics": list(metrics)})
            self._identities[metrics] = catalogue.metric_identity(settings)
        return self._identities[metrics]

    def _cell(
        self,
        kind: str,
        settings: Mapping[str, Any],
        given: Mapping[str, Any],
        inputs: Mapping[str, Any],
        what: str,
        needs: Sequence[Cell] = (),
        refused: str = "",
    ) -> Cell:
        """`make_cell`, once for what it is made of: studies ask for the same cell many times."""
        key = repr((kind, settings, given, inputs, [cell.name for cell in needs], refused))
        if key not in self._made:
            self._made[key] = make_cell(self.config, kind, settings, given, inputs, what, needs, refused)
        return self._made[key]

    def possible(self, metrics: Sequence[str]) -> list[str]:
        """The metrics, R-LPIPS only with its weights."""
        return [name for name in metrics if name != "r_lpips" or self.config.evaluate.r_lpips_weights]

    def record(self, cell: Cell) -> MetricsRecord | None:
        """What an evaluation found; None where it is not complete."""
        return self.cells.record(cell)

    # --- rank x domain x seed ----------------------------------------------------------------------------------

    @cached_property
    def perceptual(self) -> str:
        """R-LPIPS, or LPIPS under its own name where there are no weights for it."""
        return "r_lpips" if self.config.evaluate.r_lpips_weights else "lpips"

    def against_base(self, rule: Rule, rank: int, domain: str, seed: int) -> Cell | None:
        """An adapter against the base in one domain; None where its learning rate is not known yet."""
        made = self.adapter_videos(rule, rank, domain, seed)
        if made is None:
            return None
        dataset = self.config.domains[domain]
        return self.compared({"base": self.videos(None, dataset), "adapter": made}, dataset, GRID_METRICS)

    def against_lowest(self, rule: Rule, rank: int, domain: str, seed: int) -> Cell | None:
        """An adapter against that of the lowest rank in one domain; None as above."""
        least = min(self.config.ranks)
        made = {r: self.adapter_videos(rule, r, domain, seed) for r in (least, rank)}
        arms = {f"rank-{r}": cell for r, cell in made.items() if cell is not None}
        return self.compared(arms, self.config.domains[domain], GRID_METRICS) if len(arms) == 2 else None

    def adapter_videos(self, rule: Rule, rank: int, domain: str, seed: int) -> Cell | None:
        """The windows of a domain made by an adapter; None where its learning rate is not known yet."""
        factor = self.factor(rule, rank)
        if factor is None:
            return None
        return self.videos(self.adapter(rank, seed, factor), self.config.domains[domain])

    def grid_cells(self) -> list[Cell]:
        """All cells of rank x domain x seed that are known by now, by both rules for the learning rate."""
        found: list[Cell | None] = [cell for rank in self.config.ranks for cell in self.lr_trials(rank).values()]
        others = [rank for rank in self.config.ranks if rank != min(self.config.ranks)]
        for rule in RULES:
            for domain in self.config.domains:
                for seed in self.config.seeds:
                    found += [self.against_base(rule, rank, domain, seed) for rank in self.config.ranks]
                    found += [self.against_lowest(rule, rank, domain, seed) for rank in others]
        return [cell for cell in found if cell is not None]

    def seeds_of(self, rule: Rule, rank: int, domain: str) -> list[Cell | None]:
        """An adapter against the base, of each seed."""
        return [self.against_base(rule, rank, domain, seed) for seed in self.config.seeds]

    def contrast(self, rule: Rule, rank: int, domain: str, metric: str) -> Estimate | None:
        """The difference of a rank and the lowest one, over seeds."""
        found = [self.against_lowest(rule, rank, domain, seed) for seed in self.config.seeds]
        return self.difference(found, metric, f"rank-{rank}")

    def difference(self, cells: Sequence[Cell | None], metric: str, arm: str) -> Estimate | None:
        """The difference of an arm and the first one, over cells of each seed in order, or of the first seed alone.
        None where there is none."""
        by_seed = zip(self.config.seeds, cells, strict=False)
        return over_seeds({seed: self.comparison(cell, metric, arm) for seed, cell in by_seed})

    def comparison(self, cell: Cell | None, metric: str, arm: str, baseline: str | None = None) -> Comparison | None:
        """One comparison of one evaluation, where there is one: with the arm `baseline`; default: with the first."""
        record = None if cell is None else self.record(cell)
        if record is None:
            return None
        of_arm = (c for c in record.comparisons if (c.metric, c.arm) == (metric, arm))
        return next((c for c in of_arm if baseline in (None, c.baseline)), None)

    def values(self, cells: Sequence[Cell | None], metric: str, arm: str) -> list[Value]:
        """What a metric says of an arm in each evaluation that has a number of it."""
        records = [record for cell in cells if cell is not None and (record := self.record(cell)) is not None]
        found = [v for record in records for v in record.values if (v.metric, v.arm) == (metric, arm)]
        return [value for value in found if value.value is not None]

    def counted(self, cells: Sequence[Cell | None], what: str, seeds: Sequence[int] | None = None) -> str:
        """How much lies behind the numbers, in a sentence: videos, groups and seeds.

        Args:
            cells: that measured.
            what: was measured.
            seeds: of the trainings; default: those that measured something, as `cells` are of each seed in order.
        """
        if seeds is None:
            by_seed = zip(self.config.seeds, cells, strict=True)
            seeds = [seed for seed, cell in by_seed if cell is not None and self.record(cell) is not None]
        records = [record for cell in cells if cell is not None and (record := self.record(cell)) is not None]
        values = [value for record in records for value in record.values if value.value is not None]
        if not values:
            return f"{what}: nothing has been measured."
        n, groups = min(v.n for v in values), min(v.groups for v in values)
        trainings = f"{sized(len(seeds), 'training')} of each (seed {', '.join(map(str, seeds))})"
        return f"{what}: {sized(n, 'video')} of {sized(groups, 'group')} in each arm, {trainings}."

    def unavailable(self, cells: Sequence[Cell | None], metric: str) -> str:
        """Why there is no value of a metric in any of these cells; empty where there is one, or no cell is complete."""
        if metric == "r_lpips" and not self.config.evaluate.r_lpips_weights:
            return "r_lpips_weights is not given"
        records = [record for cell in cells if cell is not None and (record := self.record(cell)) is not None]
        values = [v for record in records for v in record.values if v.metric == metric]
        if not values or any(value.value is not None for value in values):
            return ""
        return values[0].reason or "no reason was recorded"


def compared_by(metric: str) -> str:
    """What differences by a metric are of: itself, or the distance to the real set's own value, which is to be
    matched."""
    name = catalogue.label(metric)
    return f"Distance of {name} to the real set" if catalogue.METRICS[metric].direction == "match" else name


def is_local(cell: Cell, config: StudyConfig) -> bool:
    """Whether a cell runs in the study's own process: a measurement by one worker without a GPU, where the study was
    not submitted to a cluster."""
    evaluate = config.evaluate
    in_cluster = "RAY_ADDRESS" in os.environ
    return cell.kind == "evaluate" and not (evaluate.use_gpu or evaluate.workers > 1 or in_cluster)


def arm_of(videos: Cell) -> str:
    """The one arm of a cell of videos."""
    return next(iter(getattr(videos.config, "arms", {})), "video")


def _against(arms: Mapping[str, Cell]) -> str:
    return " against ".join(cell.what.partition(": ")[2] for cell in reversed(list(arms.values())))
