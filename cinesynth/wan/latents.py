"""Between a model's latents and frames: pure functions of tensors."""

from __future__ import annotations

import numpy as np
import torch

from cinesynth.pictures import Frames
from cinesynth.wan.family import ModelSpec


def latent_statistics(spec: ModelSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) of a model's latents, each [1, C, 1, 1, 1] in fp32."""
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1, 1) for v in (spec.latents_mean, spec.latents_std))
    return mean, std


def to_frames(video_THWC: torch.Tensor) -> Frames:
    """The inverse of `to_unit_range`, values outside clipped: uint8, same shape."""
    scaled = (video_THWC.float() / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).cpu().numpy().astype(np.uint8, copy=False)
