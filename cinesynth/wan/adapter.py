"""LoRA adapters on a Wan transformer: save, read, load.

An adapter folder holds `pytorch_lora_weights.safetensors` (what `pipe.load_lora_weights` takes),
PEFT's `adapter_model.safetensors` with `adapter_config.json`, and `card.json`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule

from cinesynth.errors import AdapterError
from cinesynth.storage import sha256_file
from cinesynth.wan.card import (
    CARD_FILE,
    CONFIG_FILE,
    DIFFUSERS_FILE,
    PEFT_FILE,
    AdapterCard,
    Parent,
    check_adapters,
    read_card,
)
from cinesynth.wan.lora import several_adapters
from cinesynth.wan.parameters import linear_layers

_PEFT_PREFIX, _DIFFUSERS_PREFIX = "base_model.model.", "transformer."


def save_adapter(
    folder: str | os.PathLike[str], state: dict[str, torch.Tensor], config: LoraConfig, card: AdapterCard
) -> AdapterCard:
    """Write an adapter folder; returns the card with the file's hash. Equal tensors give equal bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {k: v for k, v in config.to_dict().items() if v is not None}
    metadata["target_modules"] = sorted(metadata["target_modules"])
    WanImageToVideoPipeline.save_lora_weights(
        folder, transformer_lora_layers=state, transformer_lora_adapter_metadata=_plain(metadata)
    )
    save_file({_PEFT_PREFIX + k: v for k, v in state.items()}, folder / PEFT_FILE, metadata={"format": "pt"})
    config.save_pretrained(os.fspath(folder))
    sort_header(folder / DIFFUSERS_FILE)
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(settings | {"target_modules": metadata["target_modules"]}, indent=2))
    card = card.model_copy(update={"sha256": sha256_file(folder / DIFFUSERS_FILE)})
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
    return card


def add_metrics(folder: Path, metrics: dict[str, float]) -> AdapterCard:
    """Add figures to the card of an adapter's folder; returns it."""
    card = read_card(folder)
    card = card.model_copy(update={"metrics": card.metrics | metrics})
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
    return card


def sort_header(path: Path) -> None:
    """Sort the header of a safetensors file, whose library writes metadata in a random order."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """(configuration, tensors under PEFT's names) of an adapter folder.

    Raises AdapterError for one that cannot be read or that changes nothing.
    """
    try:
        config = LoraConfig.from_pretrained(os.fspath(folder))
        state = load_file(folder / DIFFUSERS_FILE)  # the file whose hash is on the card
    except (OSError, ValueError, TypeError, SafetensorError) as e:
        raise AdapterError(f"adapter {folder} cannot be read: {e}") from e
    state = {k.removeprefix(_DIFFUSERS_PREFIX): v for k, v in state.items()}
    if not any("lora_B" in k and bool(v.any()) for k, v in state.items()):
        raise AdapterError(f"adapter {folder} changes nothing: it has no non-zero lora_B weight")
    return config, state


def factors_of(
    config: LoraConfig, state: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """(A [r, in], B [out, r], alpha) of each layer that an adapter changes: its change is alpha / r B A."""
    modules = sorted({key.split(".lora_")[0] for key in state})
    alphas = config.alpha_pattern or {}
    return {
        m: (state[f"{m}.lora_A.weight"], state[f"{m}.lora_B.weight"], float(alphas.get(m, config.lora_alpha)))
        for m in modules
    }


def load_adapters(
    transformer: WanTransformer3DModel, adapters: list[tuple[Path, float]], base_sha256: str
) -> list[Parent]:
    """Replace the transformer's adapters by these, in order; returns their hashes and scales.

    Raises:
        AdapterError: a file is missing or damaged, made for another base or other parents, names modules that
            this transformer does not have, or changes nothing.
    """
    applied, loaded = checked_adapters(transformer, adapters, base_sha256)
    for name in list(getattr(transformer, "peft_config", {})):
        transformer.delete_adapters(name)
    names = [f"adapter_{i}" for i in range(len(adapters))]
    for name, (config, state) in zip(names, loaded, strict=True):
        with several_adapters():
            transformer.add_adapter(config, adapter_name=name)
        base = next(transformer.parameters())
        if base.is_meta:  # its weights are placed later
            _put_factors(transformer, name, state, "cpu")
        elif isinstance(transformer, FSDPModule):  # PEFT takes a shard of a layer for the layer
            _put_factors(transformer, name, state, base.device)
        else:
            set_peft_model_state_dict(transformer, state, adapter_name=name)
        _take_dtype_of_base(transformer, name)
    if names:
        transformer.set_adapters(names, [scale for _, scale in adapters])
    transformer.requires_grad_(False)
    return applied


def checked_adapters(
    transformer: WanTransformer3DModel, adapters: list[tuple[Path, float]], base_sha256: str
) -> tuple[list[Parent], list[tuple[LoraConfig, dict[str, torch.Tensor]]]]:
    """Adapters' hashes and scales, and what `read_adapter` says of each. Raises as `load_adapters` does."""
    applied = check_adapters(adapters, base_sha256)
    loaded = []
    for folder, _ in adapters:
        loaded.append(read_adapter(folder))
        _check_modules(transformer, loaded[-1][1], folder)
    return applied, loaded


def _put_factors(
    transformer: WanTransformer3DModel, name: str, state: dict[str, torch.Tensor], device: torch.device | str
) -> None:
    """Give an adapter its values on a device."""
    for module_name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            for kind, factors in (("lora_A", module.lora_A), ("lora_B", module.lora_B)):
                factors[name].weight = torch.nn.Parameter(state[f"{module_name}.{kind}.weight"].to(device))


def _take_dtype_of_base(transformer: WanTransformer3DModel, name: str) -> None:
    for module in transformer.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            for factor in (module.lora_A[name], module.lora_B[name]):
                factor.to(module.get_base_layer().weight.dtype)


def _check_modules(transformer: WanTransformer3DModel, state: dict[str, torch.Tensor], folder: Path) -> None:
    layers = linear_layers(transformer)
    foreign = sorted({k.split(".lora_")[0] for k in state} - layers.keys())
    if foreign:
        raise AdapterError(f"adapter {folder} names {len(foreign)} modules that the model lacks, such as {foreign[0]}")
    for name, tensor in state.items():
        module, _, factor = name.partition(".lora_")
        layer, first = layers[module], factor.startswith("A")
        rank, width = tensor.shape[0 if first else 1], min(layer.in_features, layer.out_features)
        if rank > width:
            raise AdapterError(f"adapter {folder} has rank {rank} on {module}, which is {width} wide; it is no adapter")
        wanted = (rank, layer.in_features) if first else (layer.out_features, rank)
        if tuple(tensor.shape) != wanted:
            raise AdapterError(f"adapter {folder}: {name} has shape {tuple(tensor.shape)}, not {wanted} as the model's")
