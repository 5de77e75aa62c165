"""How the transformer is placed on the workers: `replicate` (a whole copy each), `fsdp2` (one copy sharded over all
workers by torch) or `hsdp` (a copy sharded over each group of workers, such as those of a node).

In each case every worker holds all trainable weights, and `sum_gradients` sums their gradients. So the training loop
and its checkpoints do not know which strategy runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cinesynth.errors import ConfigError
from cinesynth.train.memory import Memory
from cinesynth.wan.parameters import put

if TYPE_CHECKING:
    from cinesynth.wan.stream import StoredWeights

StrategyName = Literal["replicate", "fsdp2", "hsdp"]

_HEADROOM = 0.92
"""Share of a device's memory that a step's estimate may take; the rest is for the context and for fragments."""


@dataclass(frozen=True)
class World:
    """This process among the workers.

    Attributes:
        rank, size: of this process, and how many there are. Ranks of a node follow one another.
        device: that this process computes on.
        per_node: workers of one node.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    per_node: int = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def least(self, value: int) -> int:
        """The smallest of the workers' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor.item())


class Strategy(Protocol):
    """Places the base. The adapter is small, so every worker holds all of it.

    Attributes:
        in_step: whether the workers gather weights from each other in a forward pass, so that all run equally many.
    """

    in_step: bool

    def prepare(self, transformer: WanTransformer3DModel) -> None:
        """Place the model; called once, after the adapter was added."""


class Replicate:
    """A whole copy of the base on every worker.

    Args:
        world: this worker among all.
        weights: of a transformer that was made without values; they are read tensor by tensor to the device.
    """

    in_step = False

    def __init__(self, world: World, weights: StoredWeights | None = None) -> None:
        self.world, self.weights = world, weights

    def prepare(self, transformer: WanTransformer3DModel) -> None:
        if self.weights is not None:
            self.weights.fill(transformer, self.world.device)
        transformer.to(self.world.device)


class FullyShard:
    """torch FSDP2: each block's frozen weights are sharded over the workers and gathered while it runs.

    Adapters and the few weights that the model keeps in another dtype than its blocks (norms, modulation) stay whole:
    a group holds one dtype, and an adapter's own gathers would cost more than its memory.

    Args:
        world: this worker among all.
        weights: of a transformer that was made without values; each worker reads its own rows.
        shards: workers that share a copy: all of them, or fewer, and then there are several copies (HSDP).
    """

    in_step = True

    def __init__(self, world: World, weights: StoredWeights | None = None, shards: int | None = None) -> None:
        self.world, self.weights = world, weights
        self.shards = shards or world.size

    def prepare(self, transformer: WanTransformer3DModel) -> None:
        device = self.world.device
        copies = self.world.size // self.shards
        sizes: tuple[int, ...] = (self.shards,)
        names: tuple[str, ...] = ("shard",)
        if copies > 1:
            sizes, names = (copies, self.shards), ("copy", "shard")
        mesh = init_device_mesh(torch.device(device).type, sizes, mesh_dim_names=names)
        main = next(m.weight.dtype for m in transformer.blocks.modules() if isinstance(m, torch.nn.Linear))
        named = transformer.named_parameters()
        whole = {p for name, p in named if p.requires_grad or p.dtype != main or "lora_" in name}
        for block in transformer.blocks:
            fully_shard(block, mesh=mesh, ignored_params=whole)
        fully_shard(transformer, mesh=mesh, ignored_params=whole)
        if self.weights is not None:
            self._fill(transformer, self.weights)
        transformer.to(device)

    @torch.no_grad()
    def _fill(self, transformer: WanTransformer3DModel, weights: StoredWeights) -> None:
        absent = {name for name, p in transformer.named_parameters() if p.is_meta}
        transformer._apply(lambda t: torch.empty_like(t, device=self.world.device) if t.is_meta else t)
        for name, parameter in list(transformer.named_parameters()):
            if name not in absent:
                continue
            if not isinstance(parameter, DTensor):
                put(transformer, name, weights.read(name).to(self.world.device))
                continue
            local = parameter.to_local()
            first = self.world.rank % self.shards * -(-parameter.shape[0] // self.shards)
            if local.numel():
                local.copy_(weights.read(name, slice(first, first + local.shape[0])))


def make_strategy(
    name: StrategyName, world: World, weights: StoredWeights | None = None, shards: int | None = None
) -> Strategy:
    """The strategy of a name; see the classes for its arguments."""
    return Replicate(world, weights) if name == "replicate" else FullyShard(world, weights, shards)


def sum_gradients(parameters: Iterable[torch.nn.Parameter], world: World) -> None:
    """Sum the gradients of all workers, as one flat tensor."""
    if world.size == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # a worker that had no window of this step
            parameter.grad = torch.zeros_like(parameter)
    gradients: list[Any] = [p.grad for p in parameters]
    flat = world.sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def choose_strategy(
    requested: str, memory: Memory, device_bytes: int, world: World, shards: int | None = None, full: bool = False
) -> tuple[StrategyName, int, str]:
    """(the strategy, how many workers share one copy of the base, the reason for both).

    Args:
        requested: 'auto' or a strategy's name.
        memory: of a step.
        device_bytes: memory of the smallest worker's device.
        world: this worker among all.
        shards: workers that are to share a copy under `hsdp`; default: those of a node.
        full: all weights are trained.

    Raises ConfigError for all weights that do not fit, which nothing shards yet, and for workers that cannot be divided
    as asked for.
    """
    room = _HEADROOM * device_bytes
    limit = f"{_HEADROOM:.0%} of a device's {device_bytes / 1e9:.1f} GB"
    if full:
        if requested == "auto" and memory.on_each() > room:
            raise ConfigError(
                f"mode: full needs {memory.told()} on every device, more than {limit}; use mode=lora or a smaller "
                "model (strategy=replicate tries it all the same)"
            )
        return "replicate", 1, "all weights are trained, and only whole ones can be"
    group = shards or world.per_node
    if requested == "hsdp" and world.size % group:
        raise ConfigError(
            f"strategy: hsdp: {world.size} workers do not divide into groups of {group} that share a copy of the base; "
            "set shard_over, or change workers"
        )
    if requested != "auto":
        named: dict[str, tuple[StrategyName, int]] = {
            "replicate": ("replicate", 1),
            "fsdp2": ("fsdp2", world.size),
            "hsdp": ("hsdp", group),
        }
        return *named[requested], "asked for"
    if memory.on_each() <= room:
        return "replicate", 1, f"{memory.told()} is within {limit}"
    if world.size == 1:
        return "replicate", 1, f"{memory.told()} is more than {limit}, and there is no other worker to share it with"
    if group < world.size and world.size % group == 0 and memory.on_each(group) <= room:
        return "hsdp", group, f"{memory.told(group)} is within {limit}; {memory.told()} is not"
    return "fsdp2", world.size, f"{memory.told()} is more than {limit}; sharded it is {memory.told(world.size)}"
