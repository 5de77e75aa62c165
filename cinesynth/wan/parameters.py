"""Parameters of a transformer by name, with and without adapters on it."""

from __future__ import annotations

import torch


def bare_name(name: str) -> str:
    """A parameter's name in the transformer without adapters: PEFT wraps the layers that it adapts."""
    return name.replace(".base_layer.", ".")


def put(transformer: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter by a frozen one with this value."""
    owner, _, leaf = name.rpartition(".")
    setattr(transformer.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))


def linear_layers(transformer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The transformer's own linear layers, by their names without adapters; adapters' factors are not among them."""
    return {
        bare_name(f"{name}.").removesuffix("."): module
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    }
