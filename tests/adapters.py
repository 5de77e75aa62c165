"""What PEFT itself says of an adapter, and adapters that are looked into but not loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import get_peft_model_state_dict

from cinesynth.storage import sha256_file
from cinesynth.wan.card import CARD_FILE, CONFIG_FILE, DIFFUSERS_FILE, PEFT_FILE, AdapterCard, Parent


def adapter_state(transformer: torch.nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, under PEFT's names (`blocks.0.attn2.to_q.lora_A.weight`)."""
    state = get_peft_model_state_dict(transformer, adapter_name=name)
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}


def adapter_folder(folder: Path, base: str, parents: list[Parent]) -> Parent:
    """An adapter's folder as far as it is looked into before a model is loaded; its content is its own."""
    folder.mkdir(parents=True)
    for name in (DIFFUSERS_FILE, PEFT_FILE, CONFIG_FILE):
        (folder / name).write_text(f"{name} of {folder.name}")
    made = Parent(sha256=sha256_file(folder / DIFFUSERS_FILE), scale=1.0)
    card = AdapterCard(
        base_model="other",
        base_sha256=base,
        parents=parents,
        stage="style",
        dataset="d",
        dataset_sha256="dd",
        config={},
        step=1,
        sha256=made.sha256,
    )
    (folder / CARD_FILE).write_text(card.model_dump_json())
    return made
