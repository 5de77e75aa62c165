"""The arithmetic of a step's memory against what a GPU measured."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_model import SHAPES
from cinesynth.errors import TrainingError
from cinesynth.train.memory import memory_errors_told, step_memory
from cinesynth.wan.placement import Memory
from tests.conftest import REPOSITORY

WEIGHTS, LORA = 32_800_000_000, 131_000_000


def memory(frames: int, recompute: str, micro_batch: int = 1) -> Memory:
    config = SimpleNamespace(**SHAPES["wan14b"], patch_size=(1, 2, 2))
    shape = (16, frames, 60, 104)
    return step_memory(WEIGHTS, LORA, config, [shape], micro_batch, recompute, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "frames", "row", "recompute"),
    [
        ("nvidia_h200_wan14b_832x480x49", 13, "ours", "full"),
        ("nvidia_h200_wan14b_832x480x49", 13, "ours, cuDNN, attention kept", "attention"),
        ("nvidia_h200_wan14b_832x480x81", 21, "diffusers' loop", "full"),
        ("nvidia_h100_80gb_hbm3_wan14b_832x480x81", 21, "ours, compiled, attention kept", "attention"),
    ],
)
def test_the_estimate_is_within_a_tenth_of_what_was_measured(file: str, frames: int, row: str, recompute: str) -> None:
    record = json.loads((REPOSITORY / "benchmarks" / "results" / f"gpu_train_{file}.json").read_text())
    measured = record["figures"]["training"][row]["peak_gib"] * 2**30
    assert memory(frames, recompute).on_each() == pytest.approx(measured, rel=0.1)


def test_too_little_memory_is_told_wherever_it_is_met_and_not_tried_again() -> None:
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nSee the documentation"
    )
    with (
        pytest.raises(
            TrainingError, match=r"^training: out of memory on .+ \(CUDA out of memory\. Tried .+\); lower micro"
        ),
        memory_errors_told("training"),
    ):
        raise torch.OutOfMemoryError(text)
    with pytest.raises(KeyError), memory_errors_told("training"):
        raise KeyError("a")


def test_what_grows_with_what() -> None:
    assert memory(13, "full", 2).most_activations == 2 * memory(13, "full").most_activations
    assert memory(13, "none").most_activations > 5 * memory(13, "attention").most_activations
    assert memory(13, "full").on_each(4) == pytest.approx(memory(13, "full").on_each() - 0.75 * WEIGHTS, abs=4)
    told = memory(13, "full").told(4)
    assert "weights 32.80 GB / 4 + trained values and gradients 1.05 GB + optimiser 1.05 GB" in told
