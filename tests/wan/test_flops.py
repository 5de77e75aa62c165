"""Operations by the formula against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_model import SHAPES, random_transformer
from cinesynth.wan.flops import peak_tflops, transformer_flops


def test_the_formula_counts_what_pytorch_counts() -> None:
    transformer = random_transformer("nano", torch.float32, "cpu")
    frames, rows, columns, image_tokens = 3, 16, 24, 5
    inputs = (
        torch.randn(1, 36, frames, rows, columns),
        torch.full((1,), 500.0),
        torch.randn(1, 512, transformer.config.text_dim),
        torch.randn(1, image_tokens, transformer.config.image_dim),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        transformer(*inputs)
    counted = sum(
        sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
        if ".blocks." in name and name.count(".") == 2
    )
    assert transformer_flops(transformer.config, frames, rows, columns, 512 + image_tokens).forward == counted


def test_a_training_step_at_the_real_shape() -> None:
    class Config:
        patch_size = (1, 2, 2)

    for key, value in SHAPES["wan14b"].items():
        setattr(Config, key, value)
    flops = transformer_flops(Config, 13, 60, 104, 769)
    assert flops.forward == pytest.approx(0.84e15, rel=0.01)
    assert flops.training(frozen=True) == pytest.approx(2 * flops.linear + 3 * flops.attention)
    assert flops.training(frozen=False) == pytest.approx(3 * flops.forward)


def test_peaks_are_known_by_the_device_s_name() -> None:
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert peak_tflops("AMD EPYC") is None
