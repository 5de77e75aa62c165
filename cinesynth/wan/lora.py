"""LoRA on a Wan transformer in memory: where it goes, how it starts, how it is computed. Files are `adapter`'s."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from cinesynth.errors import ModelError
from cinesynth.wan.family import TARGET_ALIASES, Family
from cinesynth.wan.parameters import linear_layers

Targets = str | tuple[str, ...]
"""What an adapter is put on, in the form that `family.adapter_targets` gives."""


def target_modules(family: Family, transformer: WanTransformer3DModel, targets: Targets) -> list[str]:
    """Full names of the linear layers that an adapter is put on.

    Raises ModelError when the transformer lacks layers that its family has, or when nothing matches.
    """
    linear = linear_layers(transformer)
    groups = TARGET_ALIASES.get(targets) if isinstance(targets, str) else targets
    if groups is None:
        assert isinstance(targets, str)
        found = [name for name in linear if re.search(targets, name)]
        if not found:
            raise ModelError(f"lora.targets: no linear layer of the transformer matches {targets!r}")
        return found
    asked = [group for group in groups if group in family.adapter_targets]
    if not asked:
        raise ModelError(f"lora.targets: {family.title} models have no layers of the group {groups[0]!r}")
    suffixes = tuple(suffix for group in asked for suffix in family.adapter_targets[group])
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name in linear):
            raise ModelError(f"the transformer has no layer {suffix!r}, which {family.title} models have")
    return [name for name in linear if name.endswith(suffixes)]


def told_modules(names: list[str]) -> str:
    """Layers in a few words: `60 layers (attn1.to_k, attn1.to_q in 30 blocks)`."""
    blocks = {match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))}
    kinds = sorted({re.sub(r"^blocks\.\d+\.", "", name) for name in names})
    return f"{len(names)} layers ({', '.join(kinds)} in {len(blocks)} blocks)"


def add_lora(
    family: Family,
    transformer: WanTransformer3DModel,
    rank: int,
    alpha: float,
    targets: Targets,
    seed: int,
    name: str = "default",
) -> None:
    """Put a fresh, trainable adapter on the transformer, in fp32: A is drawn, B is zero.

    Adapters that are there already stay, active and frozen. The output stays the same until B changes. A layer's A
    depends on the seed, the layer's name and its shape only: not on the device, the base's dtype or what else is
    adapted.
    """
    below = list(getattr(transformer, "peft_config", {}))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_modules(family, transformer, targets))
    with torch.random.fork_rng(devices=[]), several_adapters():
        transformer.add_adapter(config, adapter_name=name)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter([*below, name])
            for adapter in below:
                for factors in (module.lora_A, module.lora_B):
                    if adapter in factors:
                        factors[adapter].requires_grad_(False)
    for module_name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            base = module.get_base_layer().weight
            device = torch.device("cpu") if base.is_meta else base.device  # a base without values is placed later
            factors = {module.lora_A[name]: _first_factor(seed, module_name, rank, module.in_features)}
            factors[module.lora_B[name]] = torch.zeros(module.out_features, rank)
            for factor, values in factors.items():
                factor.weight = torch.nn.Parameter(values.to(device))
    _compute_like_base(transformer, name)


@contextmanager
def several_adapters() -> Iterator[None]:
    """Within it, PEFT does not warn that a model gets a second adapter: here it is meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def _first_factor(seed: int, module: str, rank: int, features: int) -> torch.Tensor:
    """A [rank, features], uniform within 1 / sqrt(features) as PEFT draws it."""
    key = hashlib.sha256(f"{seed}:lora:{module}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return torch.empty(rank, features).uniform_(-(features**-0.5), features**-0.5, generator=draw)


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


def adapter_of(parameters: Mapping[str, torch.Tensor], name: str = "default") -> dict[str, torch.Tensor]:
    """An adapter's tensors under PEFT's names, of parameters by their names in the transformer."""
    part = f".{name}."
    return {k.replace(part, "."): v.contiguous() for k, v in parameters.items() if part in k and ".lora_" in k}
