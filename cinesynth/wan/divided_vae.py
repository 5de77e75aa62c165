"""A VAE's decode divided over ranks: each has some rows of the picture, and borrows those at its edges from its
neighbours wherever a convolution looks across them.

The attention in the middle sees the whole picture, which is small there: its input is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d
from torch import nn

from cinesynth.wan.parts import gather_parts, part_sizes

_ROWS = -2
"""The dimension of rows, in [B, C, T, H, W] and in [B T, C, H, W]."""


def decode_rows(vae: AutoencoderKLWan, latents_BCFhw: torch.Tensor, rank: int, size: int) -> torch.Tensor | None:
    """`vae.decode` of latents, divided over the ranks of the default process group, which all call it.

    Args:
        vae: whole on every rank.
        latents_BCFhw: the same on every rank; at least `size` rows.
        rank, size: of this process.

    Returns the video [B, C, T, H, W] on rank 0, None on the others.
    """
    sizes = part_sizes(latents_BCFhw.shape[_ROWS], size)
    mine = latents_BCFhw.tensor_split(size, dim=_ROWS)[rank].contiguous()
    with _divided(vae, sizes, rank):
        part = vae.decode(mine, return_dict=False)[0]
    scale = part.shape[_ROWS] // sizes[rank]
    video = gather_parts(part, [scale * rows for rows in sizes])
    return video if rank == 0 else None


@contextmanager
def _divided(vae: AutoencoderKLWan, sizes: list[int], rank: int) -> Iterator[None]:
    """Lets the decoder's modules know of the other ranks."""
    changed = []
    for module in vae.decoder.modules():
        forward: Callable[..., torch.Tensor] | None = None
        if isinstance(module, WanCausalConv3d) and module._padding[2] > 0:
            forward = _causal(module, rank, len(sizes))
        elif isinstance(module, nn.Conv2d) and module.padding[0] > 0:  # type: ignore[operator]  # a pair of numbers
            forward = _flat(module, rank, len(sizes))
        elif isinstance(module, WanAttentionBlock):
            forward = _whole(module, sizes, rank)
        if forward is not None:
            module.forward = forward
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _causal(conv: WanCausalConv3d, rank: int, size: int) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        left, right, rows, _, before, _ = conv._padding
        if cache_x is not None and before > 0:
            x = torch.cat([cache_x.to(x.device), x], dim=2)
            before -= cache_x.shape[2]
        x = F.pad(_with_neighbours(x, rows, rank, size), (left, right, 0, 0, before, 0))
        return nn.Conv3d.forward(conv, x)

    return forward


def _flat(conv: nn.Conv2d, rank: int, size: int) -> Callable[..., torch.Tensor]:
    rows, columns = (int(n) for n in conv.padding)

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = _with_neighbours(x, rows, rank, size)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, (0, columns), conv.dilation, conv.groups)

    return forward


def _whole(block: WanAttentionBlock, sizes: list[int], rank: int) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        everything = WanAttentionBlock.forward(block, gather_parts(x, sizes))
        return everything.split(sizes, dim=_ROWS)[rank].contiguous()

    return forward


def _with_neighbours(x: torch.Tensor, rows: int, rank: int, size: int) -> torch.Tensor:
    """The rows with those that adjoin them; beyond the picture they are zero."""
    edges = torch.stack([x.narrow(_ROWS, 0, rows), x.narrow(_ROWS, x.shape[_ROWS] - rows, rows)]).contiguous()
    every = [torch.empty_like(edges) for _ in range(size)]
    dist.all_gather(every, edges)
    above = every[rank - 1][1] if rank > 0 else torch.zeros_like(edges[0])
    below = every[rank + 1][0] if rank + 1 < size else torch.zeros_like(edges[0])
    return torch.cat([above, x, below], dim=_ROWS)
