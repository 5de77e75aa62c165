"""Unbiased squared maximum mean discrepancy with a polynomial kernel: KVD, on I3D logits.

k(x, y) = (x . y / d + 1)^3 (KID: Binkowski et al., arXiv 1801.01401; on video features: KVD, arXiv 1812.01717).
A U-statistic: its expectation is the true discrepancy at every N, so it may fall below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.metrics.statistics import NoInterval

DEGREE = 3
COEF0 = 1.0


def polynomial_kernel(
    x_ND: NDArray[np.floating], y_MD: NDArray[np.floating], degree: int = DEGREE, coef0: float = COEF0
) -> NDArray[np.float64]:
    """k(x, y) = (x . y / d + coef0)^degree for all pairs: [N, M], float64."""
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
    return (x @ y.T / x.shape[1] + coef0) ** degree


def polynomial_mmd(real_ND: NDArray[np.floating], fake_MD: NDArray[np.floating]) -> float:
    """Unbiased MMD^2 of two samples of features [N, d] and [M, d]. Raises ValueError below two rows each."""
    return KernelSums(real_ND, fake_MD).value()


class KernelSums:
    """Kernel sums of two samples, so that leaving groups out costs a subtraction instead of a new kernel.

    Args:
        real_ND: features [N, d], N > 1.
        fake_MD: features [M, d], M > 1.
    """

    def __init__(self, real_ND: NDArray[np.floating], fake_MD: NDArray[np.floating]) -> None:
        for sample in (real_ND, fake_MD):
            if sample.ndim != 2 or len(sample) < 2 or sample.shape[1] != real_ND.shape[1]:
                raise ValueError(f"unbiased MMD needs two samples [N > 1, d], not {real_ND.shape} and {fake_MD.shape}")
        self._within_real = _without_diagonal(polynomial_kernel(real_ND, real_ND))
        self._within_fake = _without_diagonal(polynomial_kernel(fake_MD, fake_MD))
        self._across = polynomial_kernel(real_ND, fake_MD)

    def value(self) -> float:
        """The unbiased estimate on all rows."""
        n, m = self._across.shape
        sums = self._within_real.sum(), self._within_fake.sum(), self._across.sum()
        return float(_estimate(*sums, n, m))

    def leave_out(self, real_groups: Sequence[str], fake_groups: Sequence[str], names: Sequence[str]) -> list[float]:
        """The estimate without each group of `names`: its rows are left out of both samples.

        Args:
            real_groups: group of each real row.
            fake_groups: group of each fake row.
            names: groups to leave out, one at a time.

        Raises:
            NoInterval: without some group fewer than two rows of a sample are left.
        """
        a_GN, b_GM = _membership(names, real_groups), _membership(names, fake_groups)
        n, m = len(real_groups) - a_GN.sum(axis=1), len(fake_groups) - b_GM.sum(axis=1)
        if n.min() < 2 or m.min() < 2:
            raise NoInterval("without one group fewer than two videos of a set are left")
        across = (
            self._across.sum()
            - a_GN @ self._across.sum(axis=1)
            - b_GM @ self._across.sum(axis=0)
            + (a_GN @ self._across * b_GM).sum(axis=1)
        )
        real, fake = _sums_without(self._within_real, a_GN), _sums_without(self._within_fake, b_GM)
        return [float(v) for v in _estimate(real, fake, across, n, m)]


def _estimate(real: Any, fake: Any, across: Any, n: Any, m: Any) -> Any:
    """From sums without diagonals; scalars, or arrays over groups."""
    return real / (n * (n - 1)) + fake / (m * (m - 1)) - 2 * across / (n * m)


def _without_diagonal(kernel_NN: NDArray[np.float64]) -> NDArray[np.float64]:
    np.fill_diagonal(kernel_NN, 0.0)
    return kernel_NN


def _membership(names: Sequence[str], groups: Sequence[str]) -> NDArray[np.float64]:
    """[G, N] with 1 where row n belongs to group g."""
    return (np.asarray(names, dtype=object)[:, None] == np.asarray(groups, dtype=object)[None, :]).astype(np.float64)


def _sums_without(kernel_NN: NDArray[np.float64], member_GN: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = (member_GN @ kernel_NN * member_GN).sum(axis=1)
    return kernel_NN.sum() - 2 * (member_GN @ kernel_NN.sum(axis=1)) + inside
