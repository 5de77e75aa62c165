"""Windows to the tensors that the transformer takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from cinesynth.wan.condition import pad_prompt

TENSORS = ("latents", "condition_latents", "image_embeds", "prompt_embeds")


class Clips(Protocol):
    """Encoded windows by index, in an order that is the same on every machine."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """`latents` and `condition_latents` [C, F, h, w], `image_embeds` [N, D], `prompt_embeds` [L, D]."""


def collate(
    windows: list[Mapping[str, Any]], device: str = "cpu", empty_prompt: dict[int, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Stack windows of one shape: fp32 [B, ...], prompts zero-filled to 512 tokens.

    Args:
        windows: of equal latent shape.
        device: where the batch goes.
        empty_prompt: place in the batch to the embedding that replaces its caption (caption dropout).
    """
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in TENSORS}
    for place, window in enumerate(windows):
        for name in TENSORS:
            value = torch.as_tensor(window[name]).float()
            if name == "prompt_embeds":
                value = pad_prompt((empty_prompt or {}).get(place, value).float())
            columns[name].append(value)
    return {name: torch.stack(values).to(device) for name, values in columns.items()}
