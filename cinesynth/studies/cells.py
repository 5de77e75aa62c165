"""Cells: the runs that studies are made of.

A cell is a run of `train`, `generate`, `evaluate`, or of a model of another family, named by the hash of its identity
and of what it reads. So two studies that need the same run have the same cell, and the same command makes only what is
missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cinesynth.config import EvaluateConfig, GenerateConfig, JobConfig, TrainConfig
from cinesynth.errors import RunTaken, user_error
from cinesynth.metrics.absent_weights import LaterWeights, metrics_without_weights
from cinesynth.metrics.record import MetricsRecord
from cinesynth.runs import CUT, FAILED, complete_result
from cinesynth.settings import Settings, parse_config
from cinesynth.storage import Storage, sha256_json
from cinesynth.studies.families import FamilyConfig, make_family_videos

log = logging.getLogger("cinesynth.studies")

_DIGITS = 16
_REASON_CHARACTERS = 400

Job = Callable[[Any], dict[str, Any]]
Status = Literal["complete", "failed", "empty", "refused"]
CONFIGS: dict[str, type[JobConfig]] = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "family": FamilyConfig,
    "evaluate": EvaluateConfig,
}
"""By kind, in the order in which cells are run."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        config: of its job; the run has the cell's name.
        what: what it is, in a few words, such as `rank 8, seed 0`.
        needs: the cells whose output it reads.
        refused: why it is never run; empty where it may be.
        before: makes what its job reads of the output of those that it needs; does nothing where that is there.
    """

    config: JobConfig
    what: str
    needs: tuple[Cell, ...] = ()
    refused: str = ""
    before: Callable[[], None] | None = None

    @property
    def kind(self) -> str:
        """One of `CONFIGS`."""
        return self.config.kind

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.name


@dataclass(frozen=True)
class Outcome:
    """What is there of a cell: `complete` with its `result`, or why it is not.

    Of one that is complete, `reason` says why it could not be measured again.
    """

    status: Status
    reason: str = ""
    result: Mapping[str, Any] | None = None

    @property
    def is_complete(self) -> bool:
        return self.status == "complete"


def cell_name(kind: str, identity: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """The name of a cell: a function of what changes its result, and of nothing else.

    Args:
        kind: of the job.
        identity: `Settings.identity()` of its configuration.
        inputs: content hashes, or names of cells, of what it reads. What counts for this cell beside its identity, such
            as the group size of one that is timed, is among them.
    """
    return f"cell-{kind}-{sha256_json([kind, identity, inputs])[:_DIGITS]}"


def make_cell(
    study: JobConfig,
    kind: str,
    settings: Settings | Mapping[str, Any],
    given: Mapping[str, Any],
    inputs: Mapping[str, Any],
    what: str,
    needs: Sequence[Cell] = (),
    refused: str = "",
) -> Cell:
    """A cell of a study.

    Args:
        study: whose storage and cluster it uses.
        kind: of the job.
        settings: of the job.
        given: fields that differ from `settings`, and those that only the job's configuration has.
        inputs: as `cell_name` takes them; the cells in `needs` count by themselves.
        what: it is, in words.
        needs: cells whose output it reads.
        refused: why it is never run.
    """
    values = settings.model_dump(mode="json") if isinstance(settings, Settings) else dict(settings)
    common = {"name": "cell", "storage": study.storage, "ray": study.ray.model_dump()}
    config = parse_config(CONFIGS[kind], {**values, **given, **common}, where=f"cell {what}")
    read = {**inputs, "cells": [cell.name for cell in needs]}
    name = cell_name(kind, config.identity(), read)
    return Cell(config.model_copy(update={"name": name}), what, tuple(needs), refused)


def with_needs(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all that they need, each once, after what it needs."""
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.name not in found:
            for needed in cell.needs:
                add(needed)
            found[cell.name] = cell

    for cell in cells:
        add(cell)
    return list(found.values())


class Cells:
    """The cells of a storage.

    Args:
        storage: where their runs lie.
        jobs: what runs each kind; default: the jobs' own drivers.
    """

    def __init__(self, storage: str, jobs: Mapping[str, Job] | None = None) -> None:
        self.storage = Storage.open(storage)
        self._jobs = jobs
        self._failures: dict[str, str] = {}
        """Of this process, by cell: some fail before their run is opened."""
        self._complete: dict[str, Outcome] = {}
        self._records: dict[str, MetricsRecord] = {}
        self._later_weights = LaterWeights()

    def folder(self, cell: Cell) -> Storage:
        """The run's folder."""
        return self.storage.child("runs", cell.name)

    def outcome(self, cell: Cell) -> Outcome:
        """What is there of a cell."""
        if cell.refused:
            return Outcome("refused", cell.refused)
        if cell.name in self._complete:
            return self._complete[cell.name]
        folder = self.folder(cell)
        if (result := complete_result(folder)) is not None:
            failure = self._failures.get(cell.name)
            why = f"measuring it again failed: {failure}" if failure else ""
            return self._complete.setdefault(cell.name, Outcome("complete", why, result))
        if cell.name in self._failures:
            return Outcome("failed", self._failures[cell.name])
        for needed in cell.needs:
            found = self.outcome(needed)
            if not found.is_complete:
                why = f" ({found.reason})" if found.reason else ""
                return Outcome("empty", f"needs {needed.name} [{needed.what}], which is {found.status}{why}")
        ended = folder.read_json("result.json") if folder.exists("result.json") else {}
        if ended.get("status") == FAILED:
            return Outcome("failed", str(ended.get("reason", "no reason was recorded")))
        if ended.get("status") == CUT:
            return Outcome("empty", f"its run was stopped: {ended.get('reason')}")
        return Outcome("empty", "not run yet" if not folder.exists("run.json") else "its run has not finished")

    def record(self, cell: Cell) -> MetricsRecord | None:
        """What an evaluation found; None where it is not complete."""
        if cell.kind != "evaluate" or not self.outcome(cell).is_complete:
            return None
        if cell.name not in self._records:
            folder = self.folder(cell)
            self._records[cell.name] = MetricsRecord.parse(folder.read_json("metrics.json"), folder.uri)
        return self._records[cell.name]

    def lacking_weights(self, cell: Cell) -> list[str]:
        """The metrics that a complete evaluation has no number of, because their weights were absent."""
        record = self.record(cell)
        return [] if record is None else metrics_without_weights(record)

    def is_ready(self, cell: Cell) -> bool:
        """Whether there is work of a cell, and all that it needs is complete.

        There is of one that is not complete, and of an evaluation that lacked weights which can be had by now; these
        are fetched for it.
        """
        if cell.refused or not all(self.outcome(needed).is_complete for needed in cell.needs):
            return False
        return not self.outcome(cell).is_complete or self._gains(cell)

    def _gains(self, cell: Cell) -> bool:
        settings = cell.config
        if not isinstance(settings, EvaluateConfig):
            return False
        return any(self._later_weights.are_there(metric, settings) for metric in self.lacking_weights(cell))

    def run(self, cell: Cell) -> Outcome:
        """Run a cell, from where a former try of it stopped. What it fails with becomes its outcome.

        What ends this process (Ctrl-C, a signal) is raised.
        """
        started = time.monotonic()
        log.info("=== %s: %s [%s]", cell.kind, cell.what, cell.name)
        for known in (self._failures, self._complete, self._records):
            known.pop(cell.name, None)
        try:
            if cell.before is not None:
                cell.before()
            self._job(cell.kind)(cell.config)
        except Exception as e:
            self._failures[cell.name] = reason_of(e)
            if user_error(e) is None:
                log.exception("cell %s failed", cell.name)
            else:
                log.error("cell %s failed: %s", cell.name, self._failures[cell.name])
        found = self.outcome(cell)
        log.info("=== %s: %s after %.0f s", cell.what, found.status, time.monotonic() - started)
        return found

    def _job(self, kind: str) -> Job:
        if self._jobs is not None:
            return self._jobs[kind]
        if kind == "train":
            from cinesynth.train.driver import train

            return train
        if kind == "generate":
            from cinesynth.generate.driver import generate

            return generate
        if kind == "family":
            return make_family_videos
        from cinesynth.metrics.evaluate import evaluate

        return evaluate


def reason_of(error: Exception) -> str:
    """Why a cell failed, in one line."""
    found = user_error(error)
    if isinstance(found, RunTaken):
        return f"{found}; the study takes its result when it is given again"
    told = str(found) if found is not None else f"{type(error).__name__}: {error}"
    return " ".join(told.split())[:_REASON_CHARACTERS]
