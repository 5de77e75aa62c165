"""Asynchronous successive halving (ASHA, arXiv 1810.05934): which trials are cut by their held-out loss.

Tune's own scheduler is not used: it forgets its rungs with its driver, and it ends a trial by killing its process, the
worker group of which then holds its CPUs and GPUs until somebody removes it. Here the losses lie beside the trials'
records, and a trial that is cut ends its own training.

    rungs/<trial>.json    held-out loss by step, of every trial that reached a comparison; `cut`: why it went no further
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cinesynth.config import HalvingSettings, TrainSettings
from cinesynth.storage import Storage

FOLDER = "rungs"


def rung_steps(settings: HalvingSettings, train: TrainSettings) -> list[int]:
    """Steps at which trials are compared, ascending: `grace * factor ** k`, each moved up to the held-out loss that
    follows, below the end of training.
    """
    every, total = train.validation.every, train.optimizer.steps
    found: list[int] = []
    at = settings.grace
    while (step := math.ceil(at / every) * every) < total:
        if step not in found:
            found.append(step)
        at *= settings.factor
    return found


def is_cut(loss: float, others: Sequence[float], factor: int) -> bool:
    """Whether a loss is not among the best one in `factor`, rounded up, of those that reached a rung.

    Args:
        loss: of the trial; one that is not finite is worse than any.
        others: losses of the other trials at this rung.
        factor: of the halving.
    """
    better = sum(not math.isfinite(loss) or other < loss for other in others if math.isfinite(other))
    return better >= math.ceil((1 + len(others)) / factor)


class Rungs:
    """The comparisons of one study.

    Args:
        study: the study's run folder.
        settings: of the halving.
        train: the stage.
    """

    def __init__(self, study: Storage, settings: HalvingSettings, train: TrainSettings) -> None:
        self.study, self.settings = study, settings
        self.steps = rung_steps(settings, train)

    def reaches(self, trial: str, step: int, loss: float, spared: bool = False) -> str | None:
        """Record that a trial reached a step, where trials are compared there; the reason if that cuts it.

        Args:
            trial: name of its run.
            step: that it reached.
            loss: held out, at this step.
            spared: it is compared with, and never cut.
        """
        if step not in self.steps:
            return None
        losses: dict[str, dict[str, Any]] = {}
        for file in self.study.list(FOLDER):
            losses[file.removeprefix(f"{FOLDER}/").removesuffix(".json")] = self.study.read_json(file)
        mine = losses.pop(trial, {})
        if "cut" in mine or str(step) in mine:  # decided before the trial was started again
            return mine.get("cut")
        mine[str(step)] = loss
        others = [known[str(step)] for known in losses.values() if str(step) in known]
        if not spared and is_cut(loss, others, self.settings.factor):
            mine["cut"] = (
                f"held-out loss {loss:.5g} at step {step} is not among the best one in {self.settings.factor} of "
                f"{1 + len(others)} trials"
            )
        self.study.write_json(f"{FOLDER}/{trial}.json", mine)
        return mine.get("cut")
