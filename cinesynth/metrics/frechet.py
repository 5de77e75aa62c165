"""Frechet distance of two Gaussians fitted to features: FVD, on I3D logits.

d^2 = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))  (Dowson and Landau, 1982; FVD: arXiv 1812.01717).

FVD is biased by about c / N: two samples of one distribution give hundreds at N = 40 and d = 400. It has no valid
interval here; read it beside its N and the floor between two halves of the real set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DDOF = 0  # universome/stylegan-v divides the covariance by N; google-research's original divides by N - 1


def frechet_distance(real_ND: NDArray[np.floating], fake_ND: NDArray[np.floating], ddof: int = DDOF) -> float:
    """Squared Frechet distance of the Gaussians fitted to two samples of features, in float64.

    The trace of the root of S_r S_f is the sum of the singular values of R_r R_f^T / sqrt((N_r - ddof)(N_f - ddof)),
    where R^T R is the scatter of a centred sample: exact for singular covariances, no epsilon, never complex.

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
    root_r, root_f = _scatter_root(real, ddof), _scatter_root(fake, ddof)
    cross = np.linalg.svd(root_r @ root_f.T, compute_uv=False).sum()
    # Of equal samples the terms cancel but for rounding, which may fall below 0.
    return max(0.0, float(shift @ shift + (root_r**2).sum() + (root_f**2).sum() - 2 * cross))


def _scatter_root(x_ND: NDArray[np.float64], ddof: int) -> NDArray[np.float64]:
    """R [min(N, d), d] with R^T R the covariance."""
    centred = (x_ND - x_ND.mean(axis=0)) / np.sqrt(len(x_ND) - ddof)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
