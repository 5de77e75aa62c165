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
