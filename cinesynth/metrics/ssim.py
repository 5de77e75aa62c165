"""The structural similarity index, SSIM (Wang et al., IEEE Transactions on Image Processing 13(4), 2004).

SSIM at a pixel = (2 m_a m_b + C1)(2 c_ab + C2) / ((m_a^2 + m_b^2 + C1)(v_a + v_b + C2)), from the means, variances and
covariance within a window around it; C1 = (0.01 L)^2 and C2 = (0.03 L)^2, with the range L = 1 of the values. The index
of two pictures is the mean over the pixels whose window lies inside the picture, and over channels.

Two definitions are in use, and differ: the authors' window, and the one that scikit-image takes by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Window:
    """A square window that weights pixels around its centre.

    Attributes:
        side: pixels, odd.
        deviation: of the Gaussian weights, in pixels; None: all pixels weigh the same.
        unbiased: variances are those of a sample, divided by n - 1 for n pixels.
    """

    side: int
    deviation: float | None
    unbiased: bool

    def mean(self, picture: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted means [H - side + 1, W - side + 1, ...] of a picture [H, W, ...]."""
        import cv2  # not at the top: every job reads the catalogue

        if self.deviation is None:
            weights = np.full((self.side, 1), 1 / self.side)
        else:
            weights = cv2.getGaussianKernel(self.side, self.deviation, cv2.CV_64F)
        edge = self.side // 2
        return cv2.sepFilter2D(picture, cv2.CV_64F, weights, weights)[edge:-edge, edge:-edge]  # type: ignore[return-value]


GAUSSIAN = Window(11, 1.5, unbiased=False)
"""Wang et al.; scikit-image's `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`."""

UNIFORM = Window(7, None, unbiased=True)
"""scikit-image's default."""


def ssim(a: NDArray[np.float64], b: NDArray[np.float64], window: Window) -> float:
    """The index of two pictures of one shape, in [-1, 1]; 1 for equal ones.

    Args:
        a, b: values in [0, 1], [H, W] or [H, W, C], with sides of at least the window's.
        window: what is compared at each pixel.
    """
    scale = window.side**2 / (window.side**2 - 1) if window.unbiased else 1.0
    mean_a, mean_b = window.mean(a), window.mean(b)
    variances = scale * (window.mean(a * a) + window.mean(b * b) - mean_a**2 - mean_b**2)
    covariance = scale * (window.mean(a * b) - mean_a * mean_b)
    products = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float(np.mean(products / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))))
