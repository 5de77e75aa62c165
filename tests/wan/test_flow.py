"""The flow objective against its closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cinesynth.train.randomness import generator
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.flow import add_noise, flow_loss, sample_sigma, shift_sigma


def test_the_exact_velocity_has_zero_loss_and_zero_has_its_power() -> None:
    x0, noise = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 16, 3, 4, 4)
    sigma = torch.tensor([0.25, 0.9])
    batch = {
        "latents": x0,
        "condition_latents": torch.zeros_like(x0),
        "prompt_embeds": torch.zeros(2, 512, 8),
        "image_embeds": torch.zeros(2, 5, 8),
    }
    seen: dict[str, Any] = {}

    class Oracle(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            seen.update(hidden_states=hidden_states, timestep=timestep)
            return (noise - x0,)

    class Zero(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            return (torch.zeros_like(x0),)

    assert flow_loss(WAN21_I2V, Oracle(), batch, noise, sigma, torch.float32).tolist() == [0, 0]
    expected = (noise - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(flow_loss(WAN21_I2V, Zero(), batch, noise, sigma, torch.float32), expected)
    assert seen["timestep"].tolist() == pytest.approx([250.0, 900.0])
    assert seen["timestep"].dtype == torch.float32
    torch.testing.assert_close(seen["hidden_states"][1, :16], 0.1 * x0[1] + 0.9 * noise[1])


def test_the_ends_of_the_path_are_data_and_noise() -> None:
    x0, noise = torch.randn(2, 1, 1, 2, 2), torch.randn(2, 1, 1, 2, 2)
    ends = add_noise(x0, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends[0], x0[0])
    torch.testing.assert_close(ends[1], noise[1])


def test_shift_moves_the_median_as_its_formula_says() -> None:
    # The median of a monotone transform is the transform of the median.
    for distribution in ("uniform", "logit_normal"):
        draws = torch.stack([sample_sigma(generator(0, "sigma", i, 0), distribution, 5.0) for i in range(2000)])  # type: ignore[arg-type]
        assert ((draws > 0) & (draws <= 1)).all()
        assert draws.median().item() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5), abs=0.03)
    assert shift_sigma(torch.tensor(0.3), 1.0).item() == pytest.approx(0.3)
