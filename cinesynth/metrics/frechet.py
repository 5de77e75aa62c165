"""Frechet distance of two Gaussians fitted to features: FVD, on I3D logits.

d^2 = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))  (Dowson and Landau, 1982; FVD: arXiv 1812.01717).

FVD is biased by about c / N: two samples of one distribution give hundreds at N = 40 and d = 400. It has no valid
interval here; read it beside its N and the floor between two halves of the real set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, eigvalsh
from scipy.linalg.blas import dtrmm

_WELL_CONDITIONED = 1e-10
"""Smallest eigenvalue of S_r S_f, as a share of the largest, that rounding (1e-16 of the largest) leaves whole."""

DDOF = 0  # universome/stylegan-v divides the covariance by N; google-research's original divides by N - 1


def frechet_distance(real_ND: NDArray[np.floating], fake_ND: NDArray[np.floating], ddof: int = DDOF) -> float:
    """Squared Frechet distance of the Gaussians fitted to two samples of features, in float64.

    The trace of the root of S_r S_f is the sum of the roots of its eigenvalues (see `root_trace`). Where a covariance
    is singular, or nearly, it is the sum of the singular values of R_r R_f^T, where R^T R is the covariance: exact
    there too, and slower. No epsilon, never complex.

    Args:
        real_ND: features [N_r, d], one row a video.
        fake_ND: features [N_f, d].
        ddof: covariances are divided by N - ddof.

    Raises:
        ValueError: fewer than ddof + 1 rows, unequal widths, or values that are not finite.
    """
    real, fake = np.asarray(real_ND, np.float64), np.asarray(fake_ND, np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be [N, d] with one d, not {real.shape} and {fake.shape}")
    if min(len(real), len(fake)) <= ddof:
        raise ValueError(f"Frechet distance needs more than {ddof} rows, not {len(real)} and {len(fake)}")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("features hold values that are not finite")
    shift = real.mean(axis=0) - fake.mean(axis=0)
    root_r, root_f = _root(real, ddof), _root(fake, ddof)
    trace = None
    if min(len(real), len(fake)) > real.shape[1]:
        trace = root_trace(root_r.T @ root_r, root_f.T @ root_f)
    if trace is None:
        trace = float(np.linalg.svd(_triangle(root_r) @ _triangle(root_f).T, compute_uv=False).sum())
    # Of equal samples the terms cancel but for rounding, which may fall below 0.
    return max(0.0, float(shift @ shift + (root_r**2).sum() + (root_f**2).sum() - 2 * trace))


def root_trace(real_DD: NDArray[np.float64], fake_DD: NDArray[np.float64]) -> float | None:
    """Trace of the root of the product of two covariances; None where it is too near to singular to be exact.

    The eigenvalues of S_r S_f are those of the symmetric L^T S_f L, where L L^T = S_r.
    """
    try:
        factor = cholesky(real_DD, lower=True, check_finite=False)
    except LinAlgError:
        return None
    product = dtrmm(1.0, factor, dtrmm(1.0, factor, fake_DD, lower=1, trans_a=1), side=1, lower=1)
    eigenvalues = eigvalsh(product, driver="evd", check_finite=False, overwrite_a=True)
    if eigenvalues[0] < _WELL_CONDITIONED * eigenvalues[-1]:
        return None
    return float(np.sqrt(eigenvalues).sum())


def _root(x_ND: NDArray[np.float64], ddof: int) -> NDArray[np.float64]:
    """R [N, d] with R^T R the covariance."""
    return (x_ND - x_ND.mean(axis=0)) / np.sqrt(len(x_ND) - ddof)


def _triangle(root_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """A root [min(N, d), d] of the same covariance."""
    return np.asarray(np.linalg.qr(root_ND, mode="r")) if len(root_ND) > root_ND.shape[1] else root_ND
