"""A transformer's frozen weights divided over processes by torch FSDP2: each block's are gathered while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import WanTransformer3DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cinesynth.wan.parameters import put

if TYPE_CHECKING:
    from cinesynth.wan.stream import StoredWeights


def divide_weights(
    transformer: WanTransformer3DModel,
    device: str,
    rank: int,
    size: int,
    shards: int,
    weights: StoredWeights | None = None,
) -> None:
    """Divide a transformer, and put it on its device.

    Adapters and the few weights that the model keeps in another dtype than its blocks (norms, modulation) stay whole:
    a group holds one dtype, and an adapter's own gathers would cost more than its memory.

    Args:
        transformer: with values, or without where there are `weights`.
        device: of this process.
        rank, size: of this process, and how many there are in the default process group.
        shards: processes that share a copy; ranks of a copy follow one another.
        weights: each process reads its own rows of them.
    """
    copies = size // shards
    sizes: tuple[int, ...] = (shards,)
    names: tuple[str, ...] = ("shard",)
    if copies > 1:
        sizes, names = (copies, shards), ("copy", "shard")
    mesh = init_device_mesh(torch.device(device).type, sizes, mesh_dim_names=names)
    main = next(m.weight.dtype for m in transformer.blocks.modules() if isinstance(m, torch.nn.Linear))
    named = transformer.named_parameters()
    whole = {p for name, p in named if p.requires_grad or p.dtype != main or "lora_" in name}
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(transformer, mesh=mesh, ignored_params=whole)
    if weights is not None:
        _fill(transformer, device, weights, rank % shards, shards)
    transformer.to(device)


@torch.no_grad()
def _fill(transformer: WanTransformer3DModel, device: str, weights: StoredWeights, shard: int, shards: int) -> None:
    absent = {name for name, p in transformer.named_parameters() if p.is_meta}
    transformer._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
    for name, parameter in list(transformer.named_parameters()):
        if name not in absent:
            continue
        if not isinstance(parameter, DTensor):
            put(transformer, name, weights.read(name).to(device))
            continue
        local, rows = parameter.to_local(), shard_rows(parameter.shape[0], shard, shards)
        if local.numel():
            local.copy_(weights.read(name, rows))


def shard_rows(rows: int, shard: int, shards: int) -> slice:
    """Those of a tensor that a shard has: all have equally many but for the last ones."""
    each = -(-rows // shards)
    return slice(min(shard * each, rows), min((shard + 1) * each, rows))
