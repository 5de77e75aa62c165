"""LoRA on a Wan transformer in memory: where it goes, how it starts, how it is computed. Files are `adapter`'s."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from cinesynth.errors import ModelError
from cinesynth.wan.family import Family

Targets = Literal["cross_attention", "attention", "all"]


def target_modules(family: Family, transformer: WanTransformer3DModel, targets: Targets) -> list[str]:
    """Full names of the linear layers that an adapter is put on.

    Raises ModelError when the transformer lacks one of those that its family has.
    """
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    suffixes = family.adapter_targets[targets]
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name in linear):
            raise ModelError(f"the transformer has no layer {suffix!r}, which {family.title} models have")
    return [name for name in linear if name.endswith(suffixes)]


def add_lora(
    family: Family,
    transformer: WanTransformer3DModel,
    rank: int,
    alpha: float,
    targets: Targets,
    seed: int,
    name: str = "default",
) -> None:
    """Put a fresh, trainable adapter on the transformer, in fp32. A is drawn from `seed`; B is zero.

    The output stays the same until B changes.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_modules(family, transformer, targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=name)
    for parameter_name, parameter in transformer.named_parameters():
        if f".{name}." in parameter_name and "lora_" in parameter_name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    _compute_like_base(transformer, name)


class _InputDtypeLinear(torch.nn.Linear):
    """Computes in its input's dtype, whatever that of its weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def _compute_like_base(transformer: WanTransformer3DModel, name: str) -> None:
    """Let an adapter in fp32 on a base in bf16 compute in bf16, as mixed precision does.

    PEFT brings every layer's input and output to the adapter's dtype instead: copies of all activations in fp32.
    """
    for module in transformer.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            module.cast_input_dtype_enabled = False
            for factor in (module.lora_A[name], module.lora_B[name]):
                factor.__class__ = _InputDtypeLinear


def adapter_state(transformer: torch.nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, under PEFT's names (`blocks.0.attn2.to_q.lora_A.weight`)."""
    state = get_peft_model_state_dict(transformer, adapter_name=name)
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}
