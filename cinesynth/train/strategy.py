"""How the transformer is placed on the workers, and trained there: `replicate` (a whole copy each), `fsdp2` (one copy
sharded over all workers by torch), `hsdp` (a copy sharded over each group of workers, such as those of a node), or
`deepspeed` (in `zero`).

A strategy owns the backward pass, clipping, the optimiser and its step. What it gives and takes as state is whole
tensors under the parameters' names, so the training loop and its checkpoints do not know which strategy runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel

from cinesynth.train.muon import Muon
from cinesynth.train.state import collect_state, restore_state
from cinesynth.wan.shards import divide_weights

if TYPE_CHECKING:
    from cinesynth.config import OptimizerSettings
    from cinesynth.wan.stream import StoredWeights


@dataclass(frozen=True)
class World:
    """This process among the workers.

    Attributes:
        rank, size: of this process, and how many there are. Ranks of a node follow one another.
        device: that this process computes on.
        per_node: workers of one node.
        sequence: ranks that compute one window together, each on a part of its tokens; they follow one another. Nothing
            sets it yet.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    per_node: int = 1
    sequence: int = 1

    @property
    def data_rank(self) -> int:
        """Place among the ranks, or groups of them, that take different windows."""
        return self.rank // self.sequence

    @property
    def data_size(self) -> int:
        """How many take different windows."""
        return self.size // self.sequence

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value by rank, on rank 0; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank == 0 else None)
        return values if self.rank == 0 else []

    def least(self, value: int) -> int:
        """The smallest of the workers' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor.item())


class Strategy(Protocol):
    """Places the model and trains it. Every worker calls every method.

    Attributes:
        in_step: whether the workers wait for each other in forward or backward passes, so that all run equally many.
        parameters: that are trained, by name; known once prepared.
        model: to call in place of the transformer; known once prepared.
    """

    in_step: bool
    parameters: dict[str, torch.nn.Parameter]
    model: torch.nn.Module

    def prepare(self, transformer: WanTransformer3DModel, settings: OptimizerSettings) -> None:
        """Place the model and make its optimiser; called once, after the adapter was added."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients; a step's loss is the sum over its forward passes and over all workers."""

    def step(self, rate: float) -> float:
        """Sum the gradients of all workers, clip them, and update the weights at this learning rate.

        Returns the norm before clipping. Where it is not finite, the weights are not to be used any more.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """All trained tensors and their moments, whole, on the CPU; see `state`."""

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Put a state back, of whatever strategy."""


def make_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimiser of a training's settings."""
    kinds = {"adamw": torch.optim.AdamW, "muon": Muon}
    made: torch.optim.Optimizer = kinds[settings.algorithm](
        parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    return made


class _Whole:
    """What is trained lies whole on every worker, with PyTorch's own optimiser."""

    parameters: dict[str, torch.nn.Parameter]
    model: torch.nn.Module

    def __init__(self, world: World, weights: StoredWeights | None = None) -> None:
        self.world, self.weights = world, weights

    def prepare(self, transformer: WanTransformer3DModel, settings: OptimizerSettings) -> None:
        self._place(transformer)
        self.model = transformer
        self.parameters = {n: p for n, p in transformer.named_parameters() if p.requires_grad}
        self._optimizer = make_optimizer(self.parameters.values(), settings)
        self._max_norm = settings.max_grad_norm

    def _place(self, transformer: WanTransformer3DModel) -> None:
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, rate: float) -> float:
        sum_gradients(self.parameters.values(), self.world)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_norm).item()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        return collect_state(self.parameters, self._optimizer)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        restore_state(state, self.parameters, self._optimizer)


class Replicate(_Whole):
    """A whole copy of the base on every worker.

    Args:
        world: this worker among all.
        weights: of a transformer that was made without values; they are read tensor by tensor to the device.
    """

    in_step = False

    def _place(self, transformer: WanTransformer3DModel) -> None:
        if self.weights is not None:
            self.weights.fill(transformer, self.world.device)
        transformer.to(self.world.device)


class FullyShard(_Whole):
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
        super().__init__(world, weights)
        self.shards = shards or world.size

    def _place(self, transformer: WanTransformer3DModel) -> None:
        divide_weights(transformer, self.world.device, self.world.rank, self.world.size, self.shards, self.weights)


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
