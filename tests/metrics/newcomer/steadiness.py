"""A metric as somebody would add it: this file, and its name in the catalogue.

scikit-image is in the extra `demo` only: a metric of the catalogue uses what the package depends on.
"""

from itertools import pairwise

import numpy as np

from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import Metric, Network


def _ssim_of_successive_frames(_, videos):
    """SSIM in grey of each frame and the next: [B, T - 1]."""
    from skimage.metrics import structural_similarity

    greys = [(frames / 255).mean(axis=-1) for (frames,) in videos]
    return np.array([[structural_similarity(a, b, data_range=1) for a, b in pairwise(grey)] for grey in greys])


METRICS = (
    Metric(
        name="example_steadiness",
        label="example steadiness",
        version=1,
        description="SSIM of each grey frame and the next: mean over frames, a group's windows, groups",
        network=Network("steadiness", "SSIM", _ssim_of_successive_frames, min_frames=2, min_side=7),
        measure=group_means,
        direction="higher",
        primary=True,
    ),
)
