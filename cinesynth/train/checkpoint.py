"""Checkpoints: what a training run needs to continue exactly, which is its weights, their moments and the step.

They hold whole tensors, whatever the strategy, so that a run can continue with another number of workers. Randomness
has no state (see `randomness`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")


def collect_state(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """All trainable tensors and their optimiser moments, copied to the CPU."""
    state = {f"parameter/{name}": p.detach().cpu().clone() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        moments = optimizer.state.get(parameter, {})
        state |= {f"{m}/{name}": moments[m].detach().cpu().clone() for m in _MOMENTS if m in moments}
    return state


def write_state(
    folder: str | os.PathLike[str], state: dict[str, torch.Tensor], step: int, figures: dict[str, float]
) -> None:
    """Write the state after `step` optimiser steps, and the figures of that moment, into a local folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"schema": 1, "step": step, "figures": figures}))


def read_state(folder: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], int, dict[str, float]]:
    """(state, number of optimiser steps done, figures)."""
    folder = Path(folder)
    record = json.loads((folder / "state.json").read_text())
    return load_file(folder / "state.safetensors"), record["step"], record["figures"]


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


class LocalCheckpoints:
    """Checkpoints in a local folder, for the loop without Ray: `step-00000100/`, the newest whole one counts."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def latest(self) -> Path | None:
        """The newest checkpoint's folder, if there is one."""
        found = sorted(self.folder.glob("step-*"))
        return found[-1] if found else None

    def save(self, state: dict[str, torch.Tensor], step: int, figures: dict[str, float]) -> None:
        """Write a checkpoint that appears whole, and drop the oldest ones."""
        temporary = self.folder / f".tmp-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        write_state(temporary, state, step, figures)
        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
