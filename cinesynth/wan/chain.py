"""A chain of adapters as one adapter, its ranks concatenated: what a service loads that takes one.

With s_i = scale_i alpha_i / r_i, the change of a layer is

    s_1 B_1 A_1 + s_2 B_2 A_2 = [s_1 B_1 | s_2 B_2] [A_1 ; A_2]

so the stacked factors, with alpha equal to the rank, compute what the adapters compute one on top of the other. Where
the ranks add up to more than the layer's width, the change itself, beside an identity, is the smaller pair of factors.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from peft import LoraConfig

from cinesynth.wan.adapter import factors_of, read_adapter, save_adapter
from cinesynth.wan.card import AdapterCard, check_adapters, read_card

Factors = tuple[torch.Tensor, torch.Tensor]


def concatenate(adapters: list[tuple[Path, float]], base_sha256: str, folder: Path) -> AdapterCard:
    """Write one adapter that does what several do in order; returns its card, which has no parents.

    Args:
        adapters: (folder, scale) in the order they are applied.
        base_sha256: of the base that they were trained on.
        folder: of the new adapter.

    Raises AdapterError as `check_adapters` does.
    """
    applied = check_adapters(adapters, base_sha256)
    stacked: dict[str, list[Factors]] = defaultdict(list)
    for path, scale in adapters:
        for module, (down, up, alpha) in factors_of(*read_adapter(path)).items():
            stacked[module].append((down.float(), up.float() * (scale * alpha / down.shape[0])))
    state, ranks = {}, {}
    for module, parts in stacked.items():
        down, up = _within_width(torch.cat([down for down, _ in parts]), torch.cat([up for _, up in parts], dim=1))
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = down, up
        ranks[module] = down.shape[0]
    rank = max(ranks.values())
    others = {module: own for module, own in sorted(ranks.items()) if own != rank}
    config = LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=dict(others), target_modules=sorted(ranks)
    )
    cards = [read_card(path) for path, _ in adapters]
    chain = [
        {"sha256": part.sha256, "scale": part.scale, "stage": card.stage}
        for part, card in zip(applied, cards, strict=True)
    ]
    made = cards[-1].model_copy(update={"parents": [], "config": {**cards[-1].config, "chain": chain}})
    return save_adapter(folder, state, config, made)


def _within_width(down: torch.Tensor, up: torch.Tensor) -> Factors:
    """Factors of the same product, of at most the layer's width: these, or the product and an identity.

    The product is summed in fp64 and rounded once, so that it does not depend on the machine.
    """
    rank, inputs, outputs = down.shape[0], down.shape[1], up.shape[0]
    if rank <= min(inputs, outputs):
        return down, up
    change = (up.double() @ down.double()).float()
    return (torch.eye(inputs), change) if inputs < outputs else (change, torch.eye(outputs))
