"""What a training step takes of a device's memory, by arithmetic: what `strategy: auto` decides by.

    weights      bytes of the base in the dtypes that it is loaded in
    trained      8 bytes a trained parameter: fp32 values and gradients
    optimiser    8 more: AdamW's two moments (Muon: 4)
    activations  for each bucket of N tokens, width D, L layers and b bytes a value, for each window of a micro-batch:
                 L N D b          a block's input, for every block
                 + L N D b        with `attention`: self-attention's output too
                 + 64 N D         what one block needs while it runs, forward or computed again
                 with `none`: 64 N D for every block

64 bytes is measured, not derived: on one GPU at the 14B shape, peak memory less the terms above was 61 N D at 20,280
tokens and 68 N D at 32,760 (`benchmarks/results/gpu_train_*.md`). It is an estimate, and PyTorch's own reserve comes
on top.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanTransformer3DModel

from cinesynth.errors import TrainingError
from cinesynth.train.recompute import Recompute
from cinesynth.wan.device_memory import is_out_of_memory, told_out_of_memory
from cinesynth.wan.family import Family
from cinesynth.wan.lora import target_modules
from cinesynth.wan.parameters import linear_layers
from cinesynth.wan.placement import Memory

if TYPE_CHECKING:
    from cinesynth.config import TrainSettings
    from cinesynth.data.dataset import ClipsDataset

_WORKING_BYTES = 64

REMEDY = "lower micro_batch, set activation_checkpointing=full or strategy=fsdp2, or take smaller windows"
"""Where a training takes too much memory."""


@contextmanager
def memory_errors_told(doing: str, remedy: str = REMEDY) -> Iterator[None]:
    """Raise TrainingError, which is not tried again, where a device has too little memory for what is done inside."""
    try:
        yield
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        raise TrainingError(f"{doing}: {told_out_of_memory(e, socket.gethostname(), remedy)}") from e


def step_memory(
    weights: int,
    trained_parameters: int,
    config: Any,
    shapes: Iterable[tuple[int, ...]],
    micro_batch: int,
    recompute: Recompute,
    bytes_per_value: int,
    moments: int = 2,
) -> Memory:
    """The memory of a training step.

    Args:
        weights: bytes of the base.
        trained_parameters: of the adapter, or of all.
        config: of the transformer.
        shapes: latent shapes [C, F, h, w] of the dataset's windows.
        micro_batch: windows of a forward pass.
        recompute: what the backward pass computes again.
        bytes_per_value: of the computation's dtype.
        moments: that the optimiser keeps of each parameter.
    """
    width = config.num_attention_heads * config.attention_head_dim
    activations = {}
    for _, *sides in sorted(set(shapes)):
        values = micro_batch * width * math.prod(s // p for s, p in zip(sides, config.patch_size, strict=True))
        kept = {"none": 0, "full": 1, "attention": 2}[recompute] * config.num_layers * values * bytes_per_value
        running = _WORKING_BYTES * values * (config.num_layers if recompute == "none" else 1)
        activations["x".join(map(str, sides))] = kept + running
    whole = {"trained values and gradients": 8 * trained_parameters, "optimiser": 4 * moments * trained_parameters}
    return Memory(weights, whole, activations)


def compute_dtype(config: TrainSettings, on_gpu: bool) -> torch.dtype:
    """The dtype of the computation: what is asked for, else bf16 on a GPU and fp32 elsewhere."""
    return torch.bfloat16 if config.dtype == "bf16" or (config.dtype == "auto" and on_gpu) else torch.float32


def training_memory(
    config: TrainSettings,
    family: Family,
    transformer: WanTransformer3DModel,
    weights: int,
    dataset: ClipsDataset,
    dtype: torch.dtype,
) -> Memory:
    """The memory of a step of a training.

    Args:
        config: the training.
        family: of the model.
        transformer: with or without values.
        weights: its bytes.
        dataset: that is trained on.
        dtype: of the computation.
    """
    full = config.mode == "full"
    layers = adapted(config, family, transformer).values()
    trained = sum(config.lora.rank * (layer.in_features + layer.out_features) for layer in layers)
    if full:
        trained = sum(p.numel() for p in transformer.parameters())
    return step_memory(
        0 if full else weights,
        trained,
        transformer.config,
        {family.latent_shape(w.num_frames, w.height, w.width) for w in dataset.windows()},
        config.micro_batch,
        config.activation_checkpointing,
        dtype.itemsize,
        1 if config.optimizer.algorithm == "muon" else 2,
    )


def adapted(config: TrainSettings, family: Family, transformer: WanTransformer3DModel) -> dict[str, torch.nn.Linear]:
    """The layers that a training's adapter is put on, by name; none where all weights are trained.

    Raises ModelError as `target_modules` does.
    """
    if config.mode == "full":
        return {}
    linear = linear_layers(transformer)
    return {name: linear[name] for name in target_modules(family, transformer, config.lora.targets)}
