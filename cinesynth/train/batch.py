"""From windows to the batches of tensors that the transformer takes, and which rank takes which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch

from cinesynth.wan.family import Family
from cinesynth.wan.inputs import pad_prompt

Shape = tuple[int, ...]


class Clips(Protocol):
    """Encoded windows by index, in an order that is the same on every machine."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The family's tensors: `latents` and `condition_latents` [C, F, h, w], `prompt_embeds` [L, D], and
        `image_embeds` [N, D] where there is an image encoder."""

    def latent_shape(self, index: int) -> Shape:
        """[C, F, h, w] of a window's latents; nothing is read for it."""

    def window_id(self, index: int) -> str:
        """Names a window, wherever it stands."""


class ListedClips(list[Mapping[str, Any]]):
    """Encoded windows in memory; one without a `window_id` is named by its place."""

    def latent_shape(self, index: int) -> Shape:
        return tuple(self[index]["latents"].shape)

    def window_id(self, index: int) -> str:
        return str(self[index].get("window_id", index))


@dataclass(frozen=True)
class Forward:
    """Windows of one shape that go through the transformer together.

    Attributes:
        places: in the global batch of the step.
        counts: False for a pass whose loss does not count. It keeps ranks in step that gather weights together.
    """

    places: tuple[int, ...]
    counts: bool = True


def share_out(shapes: Sequence[Shape], ranks: int, micro_batch: int, in_step: bool) -> list[list[Forward]]:
    """The forward passes of each rank for one step, balanced by tokens.

    Args:
        shapes: of the latents at each place of the global batch.
        ranks: that share it.
        micro_batch: windows of a pass at most.
        in_step: all ranks run equally many passes.
    """
    by_shape: dict[Shape, list[int]] = {}
    for place, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(place)
    passes: list[tuple[int, tuple[int, ...]]] = []
    for shape, places in by_shape.items():
        count = min(len(places), ranks * math.ceil(len(places) / (ranks * micro_batch)))
        ends = [len(places) * i // count for i in range(count + 1)]
        chunks = [tuple(places[start:end]) for start, end in pairwise(ends)]
        passes += [(len(chunk) * math.prod(shape[1:]), chunk) for chunk in chunks]
    passes.sort(key=lambda item: (-item[0], item[1]))
    shares: list[list[Forward]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for tokens, chunk in passes:
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        shares[rank].append(Forward(chunk))
        loads[rank] += tokens
    if in_step:
        smallest = min(range(len(shapes)), key=lambda place: math.prod(shapes[place]))
        most = max(len(share) for share in shares)
        for share in shares:
            share += [Forward((smallest,), counts=False)] * (most - len(share))
    return shares


def collate(
    family: Family,
    windows: Sequence[Mapping[str, Any]],
    device: str = "cpu",
    empty_prompt: dict[int, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Stack the tensors of windows of one shape: fp32 [B, ...], prompts zero-filled to the family's text tokens.

    Args:
        family: of the model that takes the batch.
        windows: of equal latent shape.
        device: torch device of the batch.
        empty_prompt: by place in the batch, the embedding that replaces its caption's (caption dropout).
    """
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in family.tensors}
    for place, window in enumerate(windows):
        for name in family.tensors:
            value = torch.as_tensor(window[name]).float()
            if name == "prompt_embeds":
                value = pad_prompt(family, (empty_prompt or {}).get(place, value).float())
            columns[name].append(value)
    return {name: torch.stack(values).to(device) for name, values in columns.items()}
