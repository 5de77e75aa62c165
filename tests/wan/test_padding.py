"""Collapsed padding: the stock attention's result and gradients, whatever the prompts' lengths."""

from __future__ import annotations

import copy

import pytest
import torch

from cinesynth.nano.architecture import nano_parts
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.padding import collapse_padding, distinct_tokens


@pytest.mark.parametrize("lengths", [(40, 7), (512, 3), (0, 0), (511, 511)])
def test_output_and_gradients_are_those_of_the_stock_attention(lengths: tuple[int, int]) -> None:
    stock = nano_parts().transformer
    ours = copy.deepcopy(stock)
    collapse_padding(ours, WAN21_I2V)
    draws = torch.Generator().manual_seed(0)
    text = torch.randn(2, 512, 64, generator=draws)
    for row, length in enumerate(lengths):
        text[row, length:] = 0
    inputs = {
        "hidden_states": torch.randn(2, 36, 2, 4, 4, generator=draws),
        "timestep": torch.tensor([100.0, 900.0]),
        "encoder_hidden_states": text,
        "encoder_hidden_states_image": torch.randn(2, 17, 64, generator=draws),
    }
    outputs = [model(**inputs, return_dict=False)[0] for model in (stock, ours)]
    assert torch.allclose(*outputs, atol=1e-5)
    for output in outputs:
        output.square().mean().backward()
    for (name, theirs), (_, parameter) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.allclose(parameter.grad, theirs.grad, atol=1e-6), name


def test_tokens_before_the_padding_are_counted_over_the_batch() -> None:
    text = torch.zeros(2, 6, 3)
    assert distinct_tokens(text) == 0
    text[0, 1] = 1
    text[1, 3, 2] = 1
    assert distinct_tokens(text) == 4
