"""Unbiased squared maximum mean discrepancy with a polynomial kernel: KVD, on I3D logits.

k(x, y) = (x . y / d + 1)^3 (KID: Binkowski et al., arXiv 1801.01401; on video features: KVD, arXiv 1812.01717).

MMD^2 = E k(r, r') + E k(f, f') - 2 E k(r, f) for independent draws r, r' of the real, f, f' of the fake distribution.
Each expectation is estimated by the mean over pairs. A pair counts only if its two rows belong to different groups,
since rows of one group are not independent: windows of one shot look alike, and a generated video starts from the first
frame of its real video. So the expectation of the estimate is the true discrepancy at every N; it may fall below 0.

The three means run over the same pairs where both samples hold the same groups: identical samples give exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.statistics import NoInterval

DEGREE = 3
COEF0 = 1.0
_ROWS_AT_ONCE = 2048  # of the kernel: between frames, not videos, all of it would not fit into memory


def polynomial_kernel(
    x_ND: NDArray[np.floating], y_MD: NDArray[np.floating], degree: int = DEGREE, coef0: float = COEF0
) -> NDArray[np.float64]:
    """k(x, y) = (x . y / d + coef0)^degree for all pairs: [N, M], float64."""
    x = np.asarray(x_ND, np.float64)
    # A copy: of an array with itself numpy takes a symmetric product, which rounds differently from the general one.
    y = np.array(y_MD, np.float64)
    return (x @ y.T / x.shape[1] + coef0) ** degree


class KernelSums:
    """Sums of the kernel over pairs of groups, so that leaving a group out is a subtraction and not a new kernel.

    Args:
        real_ND: features [N, d].
        fake_MD: features [M, d].
        real_groups: group of each real row. A name stands for the same group in both samples. Rows that are all
            independent have a name each.
        fake_groups: group of each fake row.

    Raises:
        ValueError: arrays of other shapes, values that are not finite, or a sample of fewer than two groups, which has
            no pair that counts.
    """

    def __init__(
        self,
        real_ND: NDArray[np.floating],
        fake_MD: NDArray[np.floating],
        real_groups: Sequence[str],
        fake_groups: Sequence[str],
    ) -> None:
        for sample, groups in ((real_ND, real_groups), (fake_MD, fake_groups)):
            if sample.ndim != 2 or sample.shape[1] != real_ND.shape[1] or len(sample) != len(groups):
                shapes = f"{real_ND.shape} with {len(real_groups)} and {fake_MD.shape} with {len(fake_groups)}"
                raise ValueError(f"MMD needs two samples [N, d] with a group for each row, not {shapes} groups")
            if len(set(groups)) < 2:
                raise ValueError(f"MMD needs two samples of at least 2 groups, not {len(set(groups))}")
            if not np.isfinite(sample).all():
                raise ValueError("features hold values that are not finite")
        self._place = {name: i for i, name in enumerate(sorted({*real_groups, *fake_groups}))}
        real, fake = (np.array([self._place[name] for name in groups]) for groups in (real_groups, fake_groups))
        size = len(self._place) + 1  # the last group is empty: names that neither sample holds
        self._parts = [
            _Pairs(real_ND, real_ND, real, real, size),
            _Pairs(fake_MD, fake_MD, fake, fake, size),
            _Pairs(real_ND, fake_MD, real, fake, size),
        ]

    def value(self) -> float:
        """The unbiased estimate on all rows."""
        real, fake, across = (part.mean() for part in self._parts)
        return real + fake - 2 * across

    def leave_out(self, names: Sequence[str]) -> list[float]:
        """The estimate without each group of `names`, one at a time: its rows are left out of both samples.

        A group that neither sample holds changes nothing.

        Raises:
            NoInterval: without some group fewer than two groups of a sample are left.
        """
        places = [self._place.get(name, len(self._place)) for name in names]
        real, fake, across = (part.means_without(places) for part in self._parts)
        return [float(v) for v in real + fake - 2 * across]


class _Pairs:
    """Sums of the kernel and numbers of pairs, both [G, G] by the groups of the two rows; 0 for one group with itself.

    Args:
        x_ND: rows of the first sample.
        y_MD: rows of the second.
        place_N: place of the group of each row of the first sample, below `size`.
        place_M: the same of the second sample.
        size: number of groups, G.
    """

    def __init__(
        self,
        x_ND: NDArray[np.floating],
        y_MD: NDArray[np.floating],
        place_N: NDArray[Any],
        place_M: NDArray[Any],
        size: int,
    ) -> None:
        rows_GM, sums_GG = np.zeros((size, len(place_M))), np.zeros((size, size))
        for start in range(0, len(x_ND), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            np.add.at(rows_GM, place_N[part], polynomial_kernel(x_ND[part], y_MD))
        np.add.at(sums_GG.T, place_M, rows_GM.T)
        n_G, m_G = (np.bincount(place, minlength=size).astype(np.float64) for place in (place_N, place_M))
        self._tables = [sums_GG, np.outer(n_G, m_G)]
        for table in self._tables:
            np.fill_diagonal(table, 0.0)

    def mean(self) -> float:
        """Mean of the kernel over the pairs that count."""
        sums, pairs = self._tables
        return float(sums.sum() / pairs.sum())

    def means_without(self, places: Sequence[int]) -> NDArray[np.float64]:
        """The mean without each of some groups."""
        sums, pairs = ((t.sum() - t.sum(axis=0) - t.sum(axis=1))[list(places)] for t in self._tables)
        if pairs.min(initial=1) < 1:
            raise NoInterval("without one group fewer than two groups of a set are left")
        return np.asarray(sums / pairs)
