"""A metric that is best where it equals the real set's own value."""

import numpy as np

from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import Metric, Network


def _changes(_, videos):
    return np.stack([np.abs(np.diff(frames.astype(float), axis=0)).mean(axis=(1, 2, 3)) for (frames,) in videos])


METRICS = (
    Metric(
        name="change",
        label="frame change",
        version=1,
        description="mean absolute difference of successive frames",
        network=Network("change", "change", _changes, min_frames=2),
        measure=group_means,
        direction="match",
    ),
)
