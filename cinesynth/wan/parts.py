"""Unequal parts of a tensor over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


def part_sizes(length: int, parts: int) -> list[int]:
    """Sizes of the parts that `tensor_split` makes of so many rows: as equal as can be, larger ones first."""
    return [len(part) for part in torch.arange(length).tensor_split(parts)]


def gather_parts(part: torch.Tensor, sizes: Sequence[int], group: Any = None) -> torch.Tensor:
    """The ranks' parts joined along the dimension before the last. All ranks of the group call it.

    Parts are padded to the longest on their way: gloo takes equal ones only.

    Args:
        part: of this rank.
        sizes: of every rank's part, along that dimension.
        group: default: the default process group.
    """
    padded = F.pad(part, (0, 0, 0, max(sizes) - part.shape[-2])).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([whole.narrow(-2, 0, size) for whole, size in zip(parts, sizes, strict=True)], dim=-2)
