"""The state of a denoising between two steps, so that a video goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import SchedulerMixin
from safetensors.torch import load, save

from cinesynth.errors import MediaError, StateOfAnother

SCHEMA = 1
_SOLVERS = {
    "UniPCMultistepScheduler": (
        "model_outputs",
        "timestep_list",
        "last_sample",
        "lower_order_nums",
        "this_order",
        "_step_index",
    ),
    "FlowMatchEulerDiscreteScheduler": ("_step_index",),
}
"""Attributes of a scheduler that its steps change, beside those that `set_timesteps` sets."""


@dataclass(frozen=True)
class SamplerState:
    """Where a denoising stands.

    Attributes:
        request: hash of everything that the video depends on.
        step: steps that are done.
        latents: fp32 [1, C, F, h, w].
        scheduler: name of the solver's class.
        solver: numbers and tensors that the solver keeps from one step to the next.
    """

    request: str
    step: int
    latents: torch.Tensor
    scheduler: str
    solver: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, request: str, step: int, latents: torch.Tensor, scheduler: SchedulerMixin) -> SamplerState:
        """The state after a step. Raises ValueError for a solver whose state is not known."""
        name = type(scheduler).__name__
        if name not in _SOLVERS:
            raise ValueError(f"the state of {name} is not known; known are {', '.join(_SOLVERS)}")
        solver = {key: getattr(scheduler, key) for key in _SOLVERS[name]}
        lists = {key: list(value) for key, value in solver.items() if isinstance(value, list)}  # its own go on changing
        return cls(request, step, latents, name, solver | lists)

    def restore(self, scheduler: SchedulerMixin, request: str, device: str) -> torch.Tensor:
        """Put the solver's part into a scheduler whose time steps are set; returns the latents.

        Raises StateOfAnother where the state is another request's.
        """
        if self.request != request or self.scheduler != type(scheduler).__name__:
            raise StateOfAnother(
                f"this state is of another request ({self.request[:12]} with {self.scheduler}, not {request[:12]} with "
                f"{type(scheduler).__name__}): start the video anew"
            )
        for key, value in self.solver.items():
            setattr(scheduler, key, _moved(value, device))  # a list is another one there
        return self.latents.to(device)

    def to_bytes(self) -> bytes:
        """As a safetensors file, with what is no tensor in its metadata."""
        tensors = {"latents": self.latents.detach().cpu().contiguous()}
        plain = _flatten(self.solver, tensors)
        header = {"schema": SCHEMA, "request": self.request, "step": self.step, "scheduler": self.scheduler}
        return save(tensors, metadata={"state": json.dumps({**header, "solver": plain})})

    @classmethod
    def from_bytes(cls, data: bytes) -> SamplerState:
        """Inverse of `to_bytes`. Raises MediaError for anything else."""
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
            if header["schema"] != SCHEMA:
                raise MediaError(f"a sampler state of schema {header['schema']}; this version reads {SCHEMA}")
            solver = {key: _restored(value, tensors) for key, value in header["solver"].items()}
            return cls(header["request"], header["step"], tensors["latents"], header["scheduler"], solver)
        except MediaError:
            raise
        except Exception as e:  # a cut file raises whatever its bytes happen to be
            raise MediaError(f"this is no sampler state ({type(e).__name__}: {e}); start the video anew") from e


def _flatten(solver: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The solver's values as JSON; tensors are put into `tensors`, and named in their place."""

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().clone().contiguous()
            return {"tensor": name}
        if isinstance(value, list | tuple):
            return [plain(item, f"{name}.{place}") for place, item in enumerate(value)]
        return value

    return {key: plain(value, f"solver.{key}") for key, value in solver.items()}


def _restored(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]]
    return [_restored(item, tensors) for item in value] if isinstance(value, list) else value


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [_moved(item, device) for item in value] if isinstance(value, list | tuple) else value
