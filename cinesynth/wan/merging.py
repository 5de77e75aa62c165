"""Adapters that are added to a transformer's weights, and can be exchanged.

A weight is W + sum of s alpha / r B A, computed in fp32 from the stored W and rounded once to the dtype of the
computation. In fp32 that is what adapters beside the weights give, to rounding; in bf16 changes below its resolution of
W are lost in part. Nothing is computed beside the weights then.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cinesynth.wan.adapter import checked_adapters, factors_of
from cinesynth.wan.card import Parent
from cinesynth.wan.parameters import linear_layers
from cinesynth.wan.shards import shard_rows
from cinesynth.wan.stream import StoredWeights


class Merging:
    """Merges adapters into one transformer.

    Args:
        weights: of its base, read in fp32.
    """

    def __init__(self, weights: StoredWeights) -> None:
        self._weights = weights
        self._changed: set[str] = set()

    @torch.no_grad()
    def load(
        self, transformer: WanTransformer3DModel, adapters: list[tuple[Path, float]], base_sha256: str
    ) -> list[Parent]:
        """Replace what is merged by these adapters, in order; returns their hashes and scales.

        Nothing is changed before all of them are read and checked; raises as `load_adapters` does.
        """
        applied, loaded = checked_adapters(transformer, adapters, base_sha256)
        changes: dict[str, list[tuple[torch.Tensor, torch.Tensor, float]]] = {name: [] for name in self._changed}
        for (_, scale), (config, state) in zip(adapters, loaded, strict=True):
            for name, (down, up, alpha) in factors_of(config, state).items():
                changes.setdefault(name, []).append((down, up, scale * alpha / down.shape[0]))
        for module in transformer.modules():
            if isinstance(module, FSDPModule):  # what the last pass gathered goes
                module.reshard()
        layers = linear_layers(transformer)
        self._changed |= changes.keys()  # where it breaks off, all of these are written again
        for name, parts in changes.items():
            self._write(layers[name].weight, f"{name}.weight", parts)
        self._changed = {name for name, parts in changes.items() if parts}
        return applied

    def _write(self, weight: torch.Tensor, name: str, parts: list[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
        rows, local = slice(0, weight.shape[0]), weight
        if isinstance(weight, DTensor):  # this process has rows of it
            mesh, local = weight.device_mesh, weight.to_local()
            rows = shard_rows(weight.shape[0], mesh.get_local_rank(), mesh.size())
        if not local.numel():
            return
        value = self._weights.read(name, rows).to(local.device)
        for down, up, factor in parts:
            value += factor * (up[rows].to(value) @ down.to(value))
        local.copy_(value)
