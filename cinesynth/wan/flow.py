"""The flow-matching objective of Wan: x_t = (1 - s) x0 + s e, target e - x0, model timestep 1000 s.

Source of the formulas: Wan2.1's official code and arXiv 2503.20314, section on training; the shift is
Stable Diffusion 3's (arXiv 2403.03206, eq. 23).
"""

from __future__ import annotations

from typing import Literal

import torch

from cinesynth.wan.family import Family
from cinesynth.wan.inputs import model_input


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """k s / (1 + (k - 1) s) for s in [0, 1]. A shift k above 1 moves weight to high noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigma(
    generator: torch.Generator, distribution: Literal["uniform", "logit_normal"], shift: float
) -> torch.Tensor:
    """One noise level in (0, 1), a scalar tensor."""
    if distribution == "uniform":
        u = torch.rand((), generator=generator)
    else:
        u = torch.sigmoid(torch.randn((), generator=generator))
    return shift_sigma(u.clamp(1e-3, 1.0), shift)


def add_noise(latents_BCFhw: torch.Tensor, noise_BCFhw: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """The noisy latents x_t, with a noise level for each sample."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * latents_BCFhw + sigma * noise_BCFhw


def flow_loss(
    family: Family,
    transformer: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    noise_BCFhw: torch.Tensor,
    sigma_B: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity for each sample: fp32 [B].

    Args:
        family: of the model.
        transformer: takes Wan's arguments.
        batch: `latents`, `condition_latents` [B, C, F, h, w], `prompt_embeds` [B, text tokens, D], and `image_embeds`
            [B, N, D] where the family has an image encoder.
        noise_BCFhw: standard normal, of the latents' shape.
        sigma_B: noise levels in (0, 1].
        dtype: of the transformer's inputs. The timestep stays fp32: bf16 would round it to steps of 4.
    """
    latents = batch["latents"].float()
    noisy = add_noise(latents, noise_BCFhw, sigma_B)
    velocity = transformer(
        hidden_states=model_input(family, noisy, batch["condition_latents"].float()).to(dtype),
        timestep=sigma_B * family.timesteps,
        encoder_hidden_states=batch["prompt_embeds"].to(dtype),
        encoder_hidden_states_image=batch["image_embeds"].to(dtype) if family.image_encoder else None,
        return_dict=False,
    )[0]
    return (velocity.float() - (noise_BCFhw - latents)).square().flatten(1).mean(1)
