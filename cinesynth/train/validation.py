"""The held-out loss at fixed noise levels and with fixed noise, so that steps, runs and workers compare."""

from __future__ import annotations

import hashlib
import json

import torch

from cinesynth.train.batch import Clips, collate
from cinesynth.train.randomness import generator
from cinesynth.train.strategy import World
from cinesynth.wan.family import Family
from cinesynth.wan.flow import flow_loss


def held_out_set(clips: Clips, sigmas: list[float], max_windows: int) -> str:
    """Names what a held-out loss is taken on, windows and noise levels: losses of one set compare, others do not."""
    names = [clips.window_id(index) for index in range(min(len(clips), max_windows))]
    return hashlib.sha256(json.dumps([names, [f"{s:g}" for s in sigmas]]).encode()).hexdigest()[:12]


@torch.no_grad()
def held_out_loss(
    family: Family,
    transformer: torch.nn.Module,
    clips: Clips,
    sigmas: list[float],
    max_windows: int,
    dtype: torch.dtype,
    world: World,
) -> dict[str, float]:
    """Mean flow loss over windows, for each noise level (`val_loss/0.4`) and over all (`val_loss`).

    The noise depends on the window and the noise level only. All workers have to call this: each runs the same number
    of forward passes, and all get the same result.
    """
    count = min(len(clips), max_windows)
    sums = torch.zeros(len(sigmas), dtype=torch.float64)
    transformer.eval()
    for start in range(0, count, world.data_size):
        index = min(start + world.data_rank, count - 1)
        counts = start + world.data_rank < count
        batch = collate(family, [clips[index]], device=world.device)
        for place, sigma in enumerate(sigmas):
            draw = generator(0, "validation", clips.window_id(index), f"{sigma:g}")
            noise = torch.randn(batch["latents"].shape, generator=draw)
            level = torch.tensor([sigma], device=world.device)
            loss = flow_loss(family, transformer, batch, noise.to(world.device), level, dtype)
            if counts:
                sums[place] += loss.item()
    transformer.train()
    means = (world.sum(sums.to(world.device)) / count).tolist()
    named = {f"val_loss/{sigma:g}": mean for sigma, mean in zip(sigmas, means, strict=True)}
    return {"val_loss": sum(means) / len(means), **named}
