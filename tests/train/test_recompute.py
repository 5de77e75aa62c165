"""What is computed again changes memory and time, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_model import random_transformer
from cinesynth.train.recompute import Recompute, set_recompute
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.lora import add_lora

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Attentions(TorchDispatchMode):
    """Counts attentions by whether they are of the video with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is ATTENTION:
            self.seen["self" if args[0].shape[-2] == args[1].shape[-2] else "cross"] += 1
        return operation(*args, **(kwargs or {}))


def step(recompute: Recompute) -> tuple[dict[str, torch.Tensor], Counter[str], Counter[str]]:
    """(gradients, attentions of the forward pass, attentions of the backward pass)."""
    torch.manual_seed(0)
    transformer = random_transformer("nano", torch.float32, "cpu")
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets="all", seed=0)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    set_recompute(transformer, recompute)
    transformer.train()
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randn(size, generator=draw) for size in ((1, 36, 2, 8, 8), (1, 512, 64), (1, 5, 64))]
    with Attentions() as forward:
        loss = transformer(inputs[0], torch.tensor([500.0]), *inputs[1:], return_dict=False)[0].square().mean()
    with Attentions() as backward:
        loss.backward()
    gradients = {n: p.grad for n, p in transformer.named_parameters() if p.grad is not None}
    return gradients, forward.seen, backward.seen


@pytest.fixture(scope="module")
def kept() -> dict[str, torch.Tensor]:
    gradients, forward, backward = step("none")
    assert forward["self"] == 6
    assert not backward
    return gradients


@pytest.mark.parametrize(("recompute", "again"), [("full", 6), ("attention", 0)])
def test_gradients_are_equal_and_self_attention_runs_again_only_where_it_is_not_kept(
    recompute: Recompute, again: int, kept: dict[str, torch.Tensor]
) -> None:
    gradients, forward, backward = step(recompute)
    assert forward["self"] == 6
    assert backward["self"] == again
    assert backward["cross"] == forward["cross"] > 0
    assert gradients.keys() == kept.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, kept[name], rtol=1e-5, atol=1e-7)
