"""Order, noise level, noise and caption dropout: pure functions of (seed, step, index in the global batch).

No generator keeps a state between calls, so one worker, four workers and a continued run draw the same.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from typing import Literal

import torch

Draw = Literal["order", "sigma", "noise", "dropout", "validation"]


def generator(seed: int, draw: Draw, *position: int | str) -> torch.Generator:
    """A fresh CPU generator for one draw at one position; different draws never share a stream."""
    key = ":".join([str(seed), draw, *map(str, position)])
    value = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(value)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=generator(seed, "order", epoch)).tolist())


def sample_index(seed: int, step: int, index: int, batch_size: int, dataset_size: int) -> int:
    """The window at place `index` (0 <= index < batch_size) of optimiser step `step` (from 0).

    Every epoch is a new permutation of all windows. A batch may lie across its end, so no window is dropped.
    """
    epoch, place = divmod(step * batch_size + index, dataset_size)
    return _permutation(seed, epoch, dataset_size)[place]


def noise(seed: int, step: int, index: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise of one sample, fp32, drawn on the CPU."""
    return torch.randn(shape, generator=generator(seed, "noise", step, index))


def drops_caption(seed: int, step: int, index: int, probability: float) -> bool:
    """Whether this sample is trained with the empty prompt."""
    return probability > 0 and torch.rand((), generator=generator(seed, "dropout", step, index)).item() < probability


def use_deterministic_kernels(on: bool) -> None:
    """Let this process compute on its GPU only, or not only, with kernels that give the same bits each time.

    Called before the first product of matrices. Faster kernels sum in the order in which their threads end: attention's
    backward pass, above all. A CPU's are deterministic at a fixed number of threads.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what PyTorch asks for: each stream's own buffers
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow
