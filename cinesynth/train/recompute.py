"""What a block keeps of its forward pass for the backward pass, and whether it is compiled.

- `none` keeps everything: the fastest, where the memory is there.
- `full` keeps a block's input and computes the rest again: B x N x D values a block.
- `attention` keeps the output of self-attention, too, which is the dearest part to compute again: twice the memory of
  `full`. Its work grows with the square of the tokens N, that of everything else with N.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "full", "attention"]

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def set_recompute(transformer: WanTransformer3DModel, recompute: Recompute, compiled: bool = False) -> None:
    """Choose what each of the transformer's blocks computes again, and whether its two passes are compiled.

    The blocks are compiled one for all (regional compilation): the first step takes a minute longer.
    """
    if recompute == "none" and not compiled:
        transformer.disable_gradient_checkpointing()
        return
    run = {"none": _run, "full": _run_again, "attention": _run_again_but_attention}[recompute]
    transformer.enable_gradient_checkpointing(torch.compile(run) if compiled else run)


def _run(block: torch.nn.Module, *inputs: Any) -> torch.Tensor:
    return block(*inputs)


def _run_again(block: torch.nn.Module, *inputs: Any) -> torch.Tensor:
    return checkpoint(block, *inputs, use_reentrant=False)


def _run_again_but_attention(block: torch.nn.Module, *inputs: Any) -> torch.Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _keep_self_attention)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _keep_self_attention(context: Any, operation: Any, *arguments: Any, **_: Any) -> CheckpointPolicy:
    # Cross-attention has as many queries, but fewer than a thousand keys: its output costs little to compute again.
    if operation in _ATTENTION and arguments[0].shape[-2] == arguments[1].shape[-2]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
