"""From windows to the batch of tensors that the transformer takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from cinesynth.wan.family import Family
from cinesynth.wan.inputs import pad_prompt


class Clips(Protocol):
    """Encoded windows by index, in an order that is the same on every machine."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The family's tensors: `latents` and `condition_latents` [C, F, h, w], `prompt_embeds` [L, D], and
        `image_embeds` [N, D] where there is an image encoder."""


def collate(
    family: Family,
    windows: list[Mapping[str, Any]],
    device: str = "cpu",
    empty_prompt: dict[int, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Stack the tensors of windows of one shape: fp32 [B, ...], prompts zero-filled to the family's text tokens.

    Args:
        family: of the model that takes the batch.
        windows: of equal latent shape.
        device: torch device of the batch.
        empty_prompt: by place in the batch, the embedding that replaces its caption's (caption dropout).
    """
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in family.tensors}
    for place, window in enumerate(windows):
        for name in family.tensors:
            value = torch.as_tensor(window[name]).float()
            if name == "prompt_embeds":
                value = pad_prompt(family, (empty_prompt or {}).get(place, value).float())
            columns[name].append(value)
    return {name: torch.stack(values).to(device) for name, values in columns.items()}
