"""When a training ends by LPIPS, and which of its checkpoints is the best: pure functions of what validations found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cinesynth.config import EarlyStop


@dataclass(frozen=True)
class Verdict:
    """What validations say of a training.

    Attributes:
        best: step with the lowest LPIPS, the earlier of equal ones; None where none counts yet.
        ends_at: step of the validation that ends the training; None while none does.
    """

    best: int | None = None
    ends_at: int | None = None


def due_steps(every: int, total: int) -> list[int]:
    """Steps whose checkpoints are validated: the multiples of `every`, and the last."""
    return [*range(every, total, every), total]


def judge(lpips: Mapping[int, float], due: Sequence[int], settings: EarlyStop) -> Verdict:
    """What early stopping says.

    Validations count in the order of their steps, and none beyond the first that is still missing: so neither the order
    in which they are done nor how long they take changes the verdict.

    Args:
        lpips: by step, of the validations that are done.
        due: steps that are validated, ascending.
        settings: patience, least improvement and warm-up.
    """
    best: int | None = None
    lowest, waited = math.inf, 0
    for step in due:
        if step not in lpips:
            break
        if step < settings.warmup:
            continue
        if best is None or lpips[step] < lpips[best]:
            best = step
        if lpips[step] < lowest - settings.min_delta:
            lowest, waited = lpips[step], 0
        else:
            waited += 1
        if waited == settings.patience:
            return Verdict(best, step)
    return Verdict(best)


def possible_bests(lpips: Mapping[int, float], due: Sequence[int], settings: EarlyStop) -> set[int]:
    """The best step, and those beyond a missing validation that may become it. Arguments as of `judge`."""
    verdict = judge(lpips, due, settings)
    best = verdict.best
    found: set[int] = set() if best is None else {best}
    for step in due if verdict.ends_at is None else ():
        if step in lpips and step >= settings.warmup and (best is None or lpips[step] < lpips[best]):
            best = step
            found.add(step)
    return found


def best_of(lpips: Mapping[int, float]) -> int | None:
    """The step with the lowest LPIPS, where nothing ends the training."""
    return min(sorted(lpips), key=lambda step: lpips[step], default=None)
