"""The transformer's inputs from latents and embeddings: pure functions of tensors, exactly as `WanImageToVideoPipeline`
builds them. Shape letters as in `condition`."""

from __future__ import annotations

import torch

from cinesynth.wan.family import Family


def first_frame_mask(family: Family, condition_BCFhw: torch.Tensor) -> torch.Tensor:
    """[B, mask channels, F, h, w]: all channels are 1 at latent frame 0, else 0."""
    batch, _, frames, height, width = condition_BCFhw.shape
    mask = condition_BCFhw.new_zeros(batch, family.mask_channels, frames, height, width)
    mask[:, :, 0] = 1
    return mask


def model_input(family: Family, noisy_BCFhw: torch.Tensor, condition_BCFhw: torch.Tensor) -> torch.Tensor:
    """The transformer's input channels, in the family's order; Wan2.1's are 16 noisy, 4 mask, 16 condition."""
    parts = {
        "noisy": noisy_BCFhw,
        "mask": first_frame_mask(family, condition_BCFhw),
        "condition": condition_BCFhw,
    }
    return torch.cat([parts[name] for name in family.input_layout], dim=1)


def pad_prompt(family: Family, embeds_LD: torch.Tensor) -> torch.Tensor:
    """Zero-fill [L, D] to [text tokens, D]: there is no cross-attention mask, so the zeros are part of the input."""
    padded = embeds_LD.new_zeros(family.text_tokens, embeds_LD.shape[1])
    padded[: len(embeds_LD)] = embeds_LD
    return padded
