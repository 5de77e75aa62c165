"""How a transformer's weights lie on the processes that compute with it: as asked for, or by the memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cinesynth.errors import ConfigError

StrategyName = Literal["replicate", "fsdp2", "hsdp", "deepspeed"]

HEADROOM = 0.92
"""Share of a device's memory that an estimate may take; the rest is for the context and for fragments."""

_BUCKETS_TOLD = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on a device that holds a whole copy.

    Attributes:
        weights: of the base, which can be divided.
        whole: by what lies whole on every device, such as the encoders.
        activations: by what is computed with, such as the bucket `33x480x832`. One of them at a time is there.
    """

    weights: int
    whole: dict[str, int]
    activations: dict[str, int]

    @property
    def most_activations(self) -> int:
        """Of the largest bucket."""
        return max(self.activations.values(), default=0)

    def on_each(self, shards: int = 1) -> int:
        """Bytes on a device when the weights are sharded so many times."""
        return self.weights // shards + sum(self.whole.values()) + self.most_activations

    def told(self, shards: int = 1) -> str:
        """The arithmetic in words."""
        split = f" / {shards}" if shards > 1 else ""
        by_size = sorted(self.activations.items(), key=lambda item: -item[1])
        buckets = [f"bucket {name}" if i == 0 else f"{_gb(size)} {name}" for i, (name, size) in enumerate(by_size)]
        more = f", and {len(buckets) - _BUCKETS_TOLD} smaller" if len(buckets) > _BUCKETS_TOLD else ""
        told = f" ({', '.join(buckets[:_BUCKETS_TOLD])}{more})" if buckets else ""
        whole = "".join(f" + {name} {_gb(size)}" for name, size in self.whole.items())
        return (
            f"weights {_gb(self.weights)}{split}{whole} + activations {_gb(self.most_activations)}{told} = "
            f"{_gb(self.on_each(shards))}"
        )


def choose_strategy(
    requested: str,
    memory: Memory,
    room_bytes: int,
    workers: int,
    per_node: int,
    shards: int | None = None,
    full: bool = False,
) -> tuple[StrategyName, int, str]:
    """(the strategy, how many workers share one copy of the base, the reason for both).

    Args:
        requested: 'auto' or a strategy's name.
        memory: of a step.
        room_bytes: memory of the smallest worker's device.
        workers: how many there are.
        per_node: how many of them are on a node.
        shards: workers that are to share a copy under `hsdp`; default: those of a node.
        full: all weights are trained.

    Raises ConfigError for all weights that do not fit, which nothing shards yet, and for workers that cannot be divided
    as asked for.
    """
    room = HEADROOM * room_bytes
    limit = f"{HEADROOM:.0%} of a device's {room_bytes / 1e9:.1f} GB"
    if full:
        if requested == "auto" and memory.on_each() > room:
            raise ConfigError(
                f"mode: full needs {memory.told()} on every device, more than {limit}; use mode=lora or a smaller "
                "model (strategy=replicate tries it all the same)"
            )
        return "replicate", 1, "all weights are trained, and only whole ones can be"
    group = shards or per_node
    if requested == "hsdp" and workers % group:
        raise ConfigError(
            f"strategy: hsdp: {workers} workers do not divide into groups of {group} that share a copy of the base; "
            "set shard_over, or change workers"
        )
    if requested != "auto":
        named: dict[str, tuple[StrategyName, int]] = {
            "replicate": ("replicate", 1),
            "fsdp2": ("fsdp2", workers),
            "hsdp": ("hsdp", group),
            "deepspeed": ("deepspeed", workers),
        }
        return *named[requested], "asked for"
    if memory.on_each() <= room:
        return "replicate", 1, f"{memory.told()} is within {limit}"
    if workers == 1:
        return "replicate", 1, f"{memory.told()} is more than {limit}, and there is no other worker to share it with"
    if group < workers and workers % group == 0 and memory.on_each(group) <= room:
        return "hsdp", group, f"{memory.told(group)} is within {limit}; {memory.told()} is not"
    return "fsdp2", workers, f"{memory.told()} is more than {limit}; sharded it is {memory.told(workers)}"


def device_bytes(device: str) -> int:
    """Memory of a device: of a GPU, or of this machine."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    with open("/proc/meminfo") as f:
        return int(f.readline().split()[1]) * 1024


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size == 0 or size >= 1e8 else f"{size / 1e6:.1f} MB"
