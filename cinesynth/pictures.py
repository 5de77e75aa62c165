"""Pictures as arrays: the type that every room shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""RGB, the colour last: one picture [H, W, 3] or a video [T, H, W, 3]."""
