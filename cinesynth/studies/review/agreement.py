"""Krippendorff's alpha: how far raters agree beyond what chance would give, with any number of answers a unit.

K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011 (repository.upenn.edu/asc_papers/43), section E:
alpha = 1 - D_o / D_e over the coincidences of all pairs of answers to one unit, with the squared difference of two
values by the level of measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(units: Sequence[Sequence[float]], level: Level) -> float | None:
    """Alpha of answers: 1 is full agreement, 0 what chance gives.

    Args:
        units: the answers to each unit, whoever gave them; units with fewer than two answers do not count.
        level: nominal: values are equal or not; ordinal: they are ranks; interval: their differences are equal steps.

    Returns:
        None where no unit has two answers, or all answers are equal: then there is nothing to agree about.
    """
    paired = [unit for unit in units if len(unit) > 1]
    values = np.array(sorted({value for unit in paired for value in unit}), np.float64)
    if len(values) < 2:
        return None
    coincidences = _coincidences(paired, values)
    totals = coincidences.sum(axis=0)
    difference = _squared_differences(values, totals, level)
    observed = float((coincidences * difference).sum())
    expected = float((np.outer(totals, totals) * difference).sum() / (totals.sum() - 1))
    return 1 - observed / expected


def _coincidences(units: Sequence[Sequence[float]], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[V, V]: the pairs of values within units, each unit of m answers weighted by 1 / (m - 1)."""
    found = np.zeros((len(values), len(values)))
    for unit in units:
        counts = np.array([unit.count(value) for value in values], np.float64)
        found += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return found


def _squared_differences(values: NDArray[np.float64], totals: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    middle = np.cumsum(totals) - totals / 2  # of each value's ranks
    return (middle[:, None] - middle[None, :]) ** 2
