"""What a training run needs to continue exactly: its weights, their moments and the step.

A state holds whole tensors, whatever the strategy, so that a run can continue with another number of workers.
Randomness has no state (see `randomness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

_MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")


@dataclass(frozen=True)
class Saved:
    """A state after `step` optimiser steps, and the figures of that moment."""

    tensors: dict[str, torch.Tensor]
    step: int
    figures: dict[str, float]


def trained(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trained tensors of a state, by their parameters' names."""
    prefix = "parameter/"
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class Checkpoints(Protocol):
    """Keeps states. Every worker calls both."""

    def latest(self) -> Saved | None:
        """The newest state that is whole."""

    def save(self, saved: Saved) -> None:
        """Keep a state; it may be written later, and its tensors are not to be changed any more."""

    def flush(self) -> None:
        """Return once all states are written. Raises what went wrong."""


def collect_state(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """All trainable tensors and their optimiser moments, copied to the CPU."""
    state = {f"parameter/{name}": p.detach().cpu().clone() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        moments = optimizer.state.get(parameter, {})
        state |= {f"{m}/{name}": moments[m].detach().cpu().clone() for m in _MOMENTS if m in moments}
    return state


@torch.no_grad()
def restore_state(
    state: dict[str, torch.Tensor], parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Put a collected state back, on the parameters' device."""
    for name, parameter in parameters.items():
        parameter.copy_(state[f"parameter/{name}"])
        moments = {m: state[f"{m}/{name}"].clone() for m in _MOMENTS if f"{m}/{name}" in state}
        if moments:
            # AdamW keeps its step counter on the CPU and its moments beside the parameter.
            optimizer.state[parameter] = {m: v if m == "step" else v.to(parameter.device) for m, v in moments.items()}
