"""The strategy of a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cinesynth.train.strategy import FullyShard, Replicate, Strategy, World

if TYPE_CHECKING:
    from cinesynth.wan.placement import StrategyName
    from cinesynth.wan.stream import StoredWeights


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
