"""Ranks that make one video together: what each of them computes, and how they stay in step.

A step has up to two forward passes, with the prompt and with the negative one. CFG-parallel gives one to each half of
the ranks, which exchange their predictions once a step. Ulysses (DeepSpeed-Ulysses, arXiv 2309.14509) divides the
tokens of a pass: each rank computes its share of them and, in self-attention, where every token sees every other, its
share of the heads. It exchanges tokens twice in every block, so guidance is divided first.

Latents are whole on every rank, and so are the latents: each rank takes the solver's step itself, from the same
prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, WanTransformer3DModel
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.hooks import RemovableHandle

from cinesynth.wan.parts import gather_parts, part_sizes

Value = TypeVar("Value")


@dataclass(frozen=True)
class Plan:
    """How a video's forward passes are divided.

    Attributes:
        guidance: 2 where the pass with the negative prompt has ranks of its own, else 1.
        sequence: ranks that share the tokens of a pass.
        uneven: tokens of a pass, where its ranks cannot have equally many: then they tell each other how many they have
            before they exchange any. Else 0.
    """

    guidance: int = 1
    sequence: int = 1
    uneven: int = 0


def choose_plan(size: int, guided: bool, tokens: int) -> Plan:
    """The plan of a group for a video of so many tokens: guidance is divided first, then the tokens."""
    guidance = 2 if guided and size % 2 == 0 else 1
    sequence = size // guidance
    return Plan(guidance, sequence, tokens if tokens % sequence else 0)


class Ranks:
    """This process among the ranks of a group. Of one rank nothing is exchanged, and no process group is needed.

    Args:
        rank, size: of this process, and how many there are. Where there are more, `torch.distributed` is initialised
            with a backend for CPU tensors beside that of the device, such as `cpu:gloo`.
        device: type of the device that computes, `cpu` or `cuda`.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, device
        self.plan = Plan()
        self._meshes: dict[tuple[int, int], DeviceMesh] = {}
        self._hooked: list[tuple[WanTransformer3DModel, dict[str, Any]]] = []
        self._handles: list[RemovableHandle] = []

    @property
    def branch(self) -> int:
        """Which of a step's forward passes is this rank's: 0 with the prompt, 1 with the negative one."""
        return self.rank // self.plan.sequence

    def divide(self, transformers: Iterable[WanTransformer3DModel], plan: Plan) -> None:
        """Follow a plan from the next forward pass on. Called by all ranks, or by none."""
        if plan == self.plan:
            return
        self.gather()
        if plan.sequence > 1:
            context = ContextParallelConfig(ulysses_degree=plan.sequence, ulysses_anything=plan.uneven > 0)
            mesh = self._mesh(plan)
            context.setup(self.rank, plan.sequence, torch.device(self.device), mesh["ring", "ulysses"])
            for transformer in transformers:
                _set_context(transformer, context)
                places = _places(transformer, plan)
                apply_context_parallel(transformer, context, places)
                self._hooked.append((transformer, places))
                if plan.uneven:
                    gather = _gathering(mesh["ulysses"].get_group(), plan)
                    self._handles.append(transformer.proj_out.register_forward_hook(gather))
        elif plan.guidance > 1:
            self._mesh(plan)
        self.plan = plan

    def gather(self) -> None:
        """Divide nothing any more."""
        for transformer, places in self._hooked:
            remove_context_parallel(transformer, places)
            _set_context(transformer, None)
        for handle in self._handles:
            handle.remove()
        self._hooked, self._handles, self.plan = [], [], Plan()

    def guided(self, *passes: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions with the prompt and with the negative one.

        Args:
            passes: make the two predictions. Both are called, or this rank's.
        """
        if self.plan.guidance == 1:
            with_prompt, with_negative = passes
            return with_prompt(), with_negative()
        mine = passes[self.branch]().contiguous()
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine, group=self._mesh(self.plan)["guidance"].get_group())
        return both[0], both[1]

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on any rank. Every rank asks at the same point, and gets the same answer."""
        if self.size == 1:
            return flag
        agreed = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return bool(agreed.item())

    def least(self, value: int) -> int:
        """The smallest of the ranks' values, on all ranks."""
        if self.size == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
        return int(agreed.item())

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on all ranks; what the others give is passed over."""
        if self.size == 1:
            assert value is not None
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        found: Value = box[0]
        return found

    def reasons(self, mine: str | None) -> list[str]:
        """What went wrong on which rank, on all ranks; empty where nothing did."""
        if self.size == 1:
            return [] if mine is None else [mine]
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, mine)
        return [f"rank {rank}: {reason}" for rank, reason in enumerate(told) if reason is not None]

    def _mesh(self, plan: Plan) -> DeviceMesh:
        """Ranks of a pass follow one another. Made once, as it makes process groups."""
        shape = plan.guidance, plan.sequence
        if shape not in self._meshes:
            names = ("guidance", "ring", "ulysses")
            self._meshes[shape] = init_device_mesh(self.device, (shape[0], 1, shape[1]), mesh_dim_names=names)
        return self._meshes[shape]


def _places(transformer: WanTransformer3DModel, plan: Plan) -> dict[str, Any]:
    """Where tokens are divided and gathered: diffusers' plan, less the time step of models that have one a token.

    Its gathering of unequal parts is left out too: gloo takes equal ones only.
    """
    left_out = {"", *(["proj_out"] if plan.uneven else [])}
    return {name: places for name, places in transformer._cp_plan.items() if name not in left_out}


def _gathering(group: Any, plan: Plan) -> Callable[[torch.nn.Module, Any, torch.Tensor], torch.Tensor]:
    """A forward hook that gathers unequal parts of the tokens."""
    sizes = part_sizes(plan.uneven, plan.sequence)
    return lambda module, inputs, part_BND: gather_parts(part_BND, sizes, group)


def _set_context(transformer: WanTransformer3DModel, context: ContextParallelConfig | None) -> None:
    """diffusers' `enable_parallelism` without its choice of a device, which fails on a CPU."""
    from diffusers.models._modeling_parallel import ParallelConfig

    config = None if context is None else ParallelConfig(context_parallel_config=context)
    for block, name in itertools.product(transformer.blocks, ("attn1", "attn2")):
        processor = getattr(block, name).processor
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
