"""Bradley-Terry strengths: one number an arm, from who was preferred over whom.

P(i is preferred over j) = 1 / (1 + exp(s_j - s_i)) (Bradley and Terry, Biometrika 39, 1952); a tie is half a win of
each. The likelihood is concave in s, and has a maximum where every arm was preferred, directly or in a chain, over each
other one (Ford, American Mathematical Monthly 64, 1957).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

_STEPS = 100
_CLOSE = 1e-10


class NoStrengths(ValueError):
    """Comparisons that give no finite strengths; the message says why."""


def bradley_terry(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strengths [K] of maximum likelihood on the logit scale, the first one 0.

    Args:
        wins: [K, K]; how often the row was preferred over the column, ties as a half in both.

    Raises:
        NoStrengths: some arms were never preferred over the others.
    """
    parts, _ = connected_components(wins > 0, connection="strong")
    if parts > 1:
        raise NoStrengths("some arms were never preferred over the others, or never compared: no finite strengths")
    games, strengths = wins + wins.T, np.zeros(len(wins))
    likelihood = _log_likelihood(wins, strengths)
    for _ in range(_STEPS):
        p = expit(strengths[:, None] - strengths[None, :])
        slope = (wins - games * p).sum(axis=1)[1:]
        weights = games * p * (1 - p)
        curvature = (np.diag(weights.sum(axis=1)) - weights)[1:, 1:]
        step = np.concatenate([[0.0], np.linalg.solve(curvature, slope)])
        while _log_likelihood(wins, strengths + step) < likelihood and np.abs(step).max() > _CLOSE:
            step /= 2  # Newton's step went too far
        strengths = strengths + step
        likelihood = _log_likelihood(wins, strengths)
        if np.abs(step).max() <= _CLOSE:
            break
    return strengths


def _log_likelihood(wins: NDArray[np.float64], strengths: NDArray[np.float64]) -> float:
    return float((wins * log_expit(strengths[:, None] - strengths[None, :])).sum())
