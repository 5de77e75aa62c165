"""How the transformer is placed on the workers: `replicate` (a whole copy each) or `fsdp2` (sharded by torch).

Either way every worker holds all trainable weights, and `sum_gradients` sums their gradients. So the training loop and
its checkpoints do not know which strategy runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

StrategyName = Literal["replicate", "fsdp2"]

_HEADROOM = 0.6
"""Share of a device's memory that replicated weights may take; the rest is for activations and the adapter."""


@dataclass(frozen=True)
class World:
    """This process among the workers."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


class Strategy(Protocol):
    """Places the frozen base. The adapter is small, so every worker holds all of it."""

    def prepare(self, transformer: WanTransformer3DModel) -> None:
        """Place the model; called once, after the adapter was added."""


class Replicate:
    """A whole copy of the base on every worker."""

    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, transformer: WanTransformer3DModel) -> None:
        transformer.to(self.world.device)


class FullyShard:
    """torch FSDP2: each block's frozen weights are sharded over the workers and gathered while it runs.

    Trainable weights and the few that the model keeps in another dtype than its blocks (norms, modulation) stay
    whole: a group holds one dtype, and an adapter's own gathers would cost more than its memory.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, transformer: WanTransformer3DModel) -> None:
        transformer.to(self.world.device)
        mesh = init_device_mesh(self.world.device.split(":")[0], (self.world.size,))
        main = next(m.weight.dtype for m in transformer.blocks.modules() if isinstance(m, torch.nn.Linear))
        whole = {p for p in transformer.parameters() if p.requires_grad or p.dtype != main}
        for block in transformer.blocks:
            fully_shard(block, mesh=mesh, ignored_params=whole)
        fully_shard(transformer, mesh=mesh, ignored_params=whole)


def make_strategy(name: StrategyName, world: World) -> Strategy:
    return Replicate(world) if name == "replicate" else FullyShard(world)


def sum_gradients(parameters: Iterable[torch.nn.Parameter], world: World) -> None:
    """Sum the gradients of whole parameters over all workers, in one all-reduce."""
    if world.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = world.sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def choose_strategy(requested: str, weight_bytes: int, device_bytes: int, workers: int) -> tuple[StrategyName, str]:
    """The strategy and the reason for it.

    Args:
        requested: 'auto', 'replicate' or 'fsdp2'.
        weight_bytes: size of the frozen base.
        device_bytes: memory of one worker's device.
        workers: number of workers.
    """
    size, room = f"{weight_bytes / 1e9:.2f} GB", f"{device_bytes / 1e9:.1f} GB"
    if requested in ("replicate", "fsdp2"):
        return ("replicate" if requested == "replicate" else "fsdp2"), "asked for"
    if weight_bytes <= _HEADROOM * device_bytes or workers == 1:
        return "replicate", f"the frozen base ({size}) fits on every device ({room})"
    return "fsdp2", f"the frozen base ({size}) does not fit beside activations on one device ({room})"
