"""A few scripted clips, encoded by the nano model: what training and generation tests share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cinesynth.scripted.series import scripted_clip
from cinesynth.wan.condition import ConditionEncoder

FRAMES, HEIGHT, WIDTH = 9, 64, 96


@lru_cache(maxsize=1)
def encoder() -> ConditionEncoder:
    return ConditionEncoder("nano")


@lru_cache(maxsize=1)
def encoded_clips(count: int = 8) -> list[dict[str, Any]]:
    """`count` windows of 9 frames as a staged dataset gives them."""
    windows = []
    for index in range(count):
        clip = scripted_clip(11, index, height=HEIGHT, width=WIDTH)
        frames = np.ascontiguousarray(clip.frames[:FRAMES])
        windows.append(
            {
                "latents": encoder().latents(frames),
                "condition_latents": encoder().condition_latents(frames[0], FRAMES),
                "image_embeds": encoder().image_embeds(frames[0]),
                "prompt_embeds": encoder().prompt_embeds(clip.caption),
                "frame": frames[0],
                "caption": clip.caption,
            }
        )
    return windows
