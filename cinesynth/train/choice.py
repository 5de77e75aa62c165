"""Which strategy a training runs with: as asked for, or by the memory that a step takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cinesynth.errors import ConfigError
from cinesynth.train.memory import Memory
from cinesynth.train.strategy import FullyShard, Replicate, Strategy, World

if TYPE_CHECKING:
    from cinesynth.wan.stream import StoredWeights

StrategyName = Literal["replicate", "fsdp2", "hsdp", "deepspeed"]

_HEADROOM = 0.92
"""Share of a device's memory that a step's estimate may take; the rest is for the context and for fragments."""


def make_strategy(
    name: StrategyName,
    world: World,
    weights: StoredWeights | None = None,
    shards: int | None = None,
    zero_stage: Literal[2, 3] = 3,
) -> Strategy:
    """The strategy of a name; see the classes for its arguments."""
    if name == "deepspeed":
        from cinesynth.train.zero import Zero  # imported only here: it takes seconds, and is Linux only

        return Zero(world, weights, zero_stage)
    return Replicate(world, weights) if name == "replicate" else FullyShard(world, weights, shards)


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
            "deepspeed": ("deepspeed", world.size),
        }
        return *named[requested], "asked for"
    if memory.on_each() <= room:
        return "replicate", 1, f"{memory.told()} is within {limit}"
    if world.size == 1:
        return "replicate", 1, f"{memory.told()} is more than {limit}, and there is no other worker to share it with"
    if group < world.size and world.size % group == 0 and memory.on_each(group) <= room:
        return "hsdp", group, f"{memory.told(group)} is within {limit}; {memory.told()} is not"
    return "fsdp2", world.size, f"{memory.told()} is more than {limit}; sharded it is {memory.told(world.size)}"
