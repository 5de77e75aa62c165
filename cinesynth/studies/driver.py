"""The study job: it runs the cells that are missing, and writes the page of those that are there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, Protocol, get_args

from cinesynth.config import TrainConfig
from cinesynth.lease import Lease, held
from cinesynth.outline import Facts, Outline, cluster_of, sized
from cinesynth.report.study import Page, write_study_page
from cinesynth.runs import FAILED, Run, records_its_end
from cinesynth.session import ray_session
from cinesynth.studies.cells import CONFIGS, Cell, Cells, Job, Outcome, Status, with_needs
from cinesynth.studies.config import STUDIES, StudyConfig
from cinesynth.studies.findings import Findings
from cinesynth.studies.grid import Grid, is_local
from cinesynth.studies.inputs import Inputs, read_inputs

log = logging.getLogger("cinesynth.studies")

_ORDER = list(CONFIGS)


class Study(Protocol):
    """A file of this folder."""

    def cells(self, grid: Grid) -> list[Cell]:
        """The cells that are known to be needed, by what is there of them already."""
        ...

    def findings(self, grid: Grid) -> Findings:
        """What the finished ones show."""
        ...


def study_of(name: str) -> Study:
    """The study of that name, one of `STUDIES`."""
    found: Any = import_module(f"cinesynth.studies.{name}")
    study: Study = found
    return study


@records_its_end
def run_study(config: StudyConfig, jobs: Mapping[str, Job] | None = None) -> dict[str, Any]:
    """Run the cells that are missing, from where a former try stopped, and write the page; returns the run's result.

    A cell that fails does not end the study; the result's status is `failed` then, with how many did.

    Args:
        config: of the study.
        jobs: what runs each kind of cell; default: the jobs' own drivers, in one Ray session.
    """
    config = config.of_run()
    inputs = read_inputs(config)
    run = Run.open(config, inputs.hashes())
    grid = Grid(config, Cells(config.storage, jobs), inputs)
    with held(run) as lease:
        outcomes = complete(grid, lease, nullcontext if jobs is not None else partial(ray_session, config))
    return _finish(grid, run, outcomes)


def complete(
    grid: Grid, lease: Lease | None = None, session: Callable[[], AbstractContextManager[None]] = nullcontext
) -> dict[str, tuple[Cell, Outcome]]:
    """Run what is missing, each cell once, until no cell is ready; returns all by name with their outcomes.

    A cell that is finished may make others known, such as those of the learning rate that it is chosen by. Cells that
    are measured in this process come last, when the session is closed: it would take the processors for itself.

    Args:
        grid: of the study.
        lease: on its run.
        session: opens what jobs run on.
    """
    tried: set[str] = set()
    while ready := _ready(grid, tried):
        if is_local(ready[0], grid.config):
            _run_all(grid, ready, tried, lease)
            continue
        with session():
            while (ready := _ready(grid, tried)) and not is_local(ready[0], grid.config):
                _run_all(grid, ready, tried, lease)
    known = with_needs(study_of(grid.config.study).cells(grid))
    return {cell.name: (cell, grid.cells.outcome(cell)) for cell in known}


def _ready(grid: Grid, tried: Container[str]) -> list[Cell]:
    """The cells of one kind, the earliest in order, that can be run and were not tried yet."""
    known = with_needs(study_of(grid.config.study).cells(grid))
    ready = [cell for cell in known if cell.name not in tried and grid.cells.is_ready(cell)]
    first = min((_ORDER.index(cell.kind) for cell in ready), default=0)
    return [cell for cell in ready if cell.kind == _ORDER[first]]


def _run_all(grid: Grid, cells: Sequence[Cell], tried: set[str], lease: Lease | None) -> None:
    for place, cell in enumerate(cells):
        if lease is not None:
            lease.check()
        log.info("%d of %d cells to %s", place + 1, len(cells), cell.kind)
        tried.add(cell.name)
        grid.cells.run(cell)


def _finish(grid: Grid, run: Run, outcomes: dict[str, tuple[Cell, Outcome]]) -> dict[str, Any]:
    config = grid.config
    counts = Counter(outcome.status for _, outcome in outcomes.values())
    told = [
        {"cell": name, "kind": cell.kind, "what": cell.what, "status": outcome.status, "reason": outcome.reason}
        for name, (cell, outcome) in outcomes.items()
    ]
    run.folder.write_json("cells.json", {"schema": 1, "cells": told})
    page = Page(config, STUDIES[config.study], study_of(config.study).findings(grid), list(outcomes.values()))
    outputs = {"report": write_study_page(page, run), "cells": run.folder.child("cells.json").uri}
    figures = {"cells": len(outcomes), **{status: counts[status] for status in get_args(Status)}}
    left_out = {outcome.reason: cell.what for cell, outcome in outcomes.values() if outcome.status == "refused"}
    result = run.finish(outputs, figures, left_out)
    if counts["failed"]:
        first = next(f"{cell.what}: {o.reason}" for cell, o in outcomes.values() if o.status == "failed")
        result |= {"status": FAILED, "reason": f"{sized(counts['failed'], 'cell')} failed, such as {first}"}
        run.folder.write_json("result.json", result)
    return result


def outline_study(config: StudyConfig, read: Callable[[StudyConfig], Inputs] = read_inputs) -> Outline:
    """What a study would do: its cells, which of them are there, and how much work the others are.

    Raises CinesynthError where its inputs do not fit, and IdentityError where another run has its name.
    """
    config = config.of_run()
    inputs = read(config)
    run = Run.at(config, inputs.hashes())
    state = "new"
    if run.folder.exists("run.json"):
        run.check(config)
        state = "continues"
    grid = Grid(config, Cells(config.storage), inputs)
    known = with_needs(study_of(config.study).cells(grid))
    outcomes = [(cell, grid.cells.outcome(cell)) for cell in known]
    steps = sum(c.config.optimizer.steps for c, o in outcomes if isinstance(c.config, TrainConfig) and _is_left(o))
    windows = config.generate.max_windows
    work: Facts = [("question", STUDIES[config.study])]
    for kind in _ORDER:
        of_kind = [outcome for cell, outcome in outcomes if cell.kind == kind]
        done = sum(outcome.is_complete for outcome in of_kind)
        refused = sum(outcome.status == "refused" for outcome in of_kind)
        extra = f", {refused} refused" if refused else ""
        work.append((kind, f"{sized(len(of_kind), 'cell')}, {done} of them complete{extra}"))
    work.append(("left", f"{steps:,} optimiser steps; each cell of videos makes {windows or 'all'} windows"))
    if lacking := sum(bool(grid.cells.lacking_weights(cell)) for cell in known):
        work.append(("again", f"{sized(lacking, 'evaluation')} that lacked weights, where these can be had by then"))
    work.append(
        ("later", "cells that depend on what these find, such as those of the best learning rates, come on top")
    )
    cells = [(outcome.status, f"{cell.name}  {cell.what}") for cell, outcome in outcomes]
    datasets = [(f"dataset {i}", f"{name} ({value[:12]})") for i, (name, value) in enumerate(inputs.datasets.items())]
    told = [("model", f"{config.model} ({inputs.base[:12]})"), *datasets]
    return Outline(f"study {config.name}", state, told, [*work, *cells], [cluster_of(config)])


def _is_left(outcome: Outcome) -> bool:
    return outcome.status in ("empty", "failed")
