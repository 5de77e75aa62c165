"""LoRA files of other programs: adapters written for them, and theirs read as adapters.

| format | keys | loader |
| --- | --- | --- |
| `diffusers` | `transformer.blocks.0.attn1.to_q.lora_A.weight`, alpha in the metadata | `pipe.load_lora_weights` |
| `comfyui` | `diffusion_model.blocks.0.self_attn.q.lora_A.weight`, `.alpha` | ComfyUI, LoraLoaderModelOnly |
| `kohya` | `lora_unet_blocks_0_self_attn_q.lora_down.weight`, `.alpha` | musubi-tuner, `--lora_weight` |

The last two name layers as Wan's own code does, diffusers as its transformer does. In a file without alpha the change
is applied as it is: alpha is the rank.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cinesynth.errors import AdapterError
from cinesynth.storage import sha256_file
from cinesynth.wan.adapter import factors_of, read_adapter, save_adapter, sort_header
from cinesynth.wan.card import DIFFUSERS_FILE, AdapterCard

Format = Literal["diffusers", "comfyui", "kohya"]

LOADERS: dict[Format, str] = {
    "diffusers": "diffusers: pipe.load_lora_weights(FOLDER, weight_name=FILE)",
    "comfyui": "ComfyUI: the file in models/loras, node LoraLoaderModelOnly",
    "kohya": "musubi-tuner: wan_generate_video.py --lora_weight FILE",
}

_IN_BLOCK = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_OUTSIDE = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "proj_out": "head.head",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_PARTS = {
    "lora_A": "down",
    "lora_down": "down",
    "lora.down": "down",
    "lora_B": "up",
    "lora_up": "up",
    "lora.up": "up",
}
_PREFIXES: dict[Format, str] = {"diffusers": "transformer.", "comfyui": "diffusion_model.", "kohya": "lora_unet_"}


@dataclass
class _Layer:
    """What a file says of one layer."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: float | None = None


def native_name(module: str) -> str:
    """A layer of diffusers' Wan transformer by its name in Wan's own code.

    Raises AdapterError for one that has no such name.
    """
    match = _BLOCK.fullmatch(module)
    name = _IN_BLOCK.get(match[2]) if match else _OUTSIDE.get(module)
    if name is None:
        raise AdapterError(f"the layer {module!r} has no name in Wan's own code; only format diffusers can hold it")
    return f"blocks.{match[1]}.{name}" if match else name


def export_adapter(adapter: Path, format: Format, file: Path) -> None:
    """Write an adapter as one file for another program.

    Args:
        adapter: folder of an adapter without parents; `chain.concatenate` makes one of several.
        format: of the file.
        file: that does not exist yet.

    Raises AdapterError for a layer that the format cannot name, and as `read_adapter` does.
    """
    if format == "diffusers":
        file.write_bytes((adapter / DIFFUSERS_FILE).read_bytes())
        return
    down, up = ("lora_A", "lora_B") if format == "comfyui" else ("lora_down", "lora_up")
    config, state = read_adapter(adapter)
    tensors: dict[str, torch.Tensor] = {}
    layers = factors_of(config, state)
    for module, (a, b, alpha) in layers.items():
        name = native_name(module)
        key = _PREFIXES[format] + (name if format == "comfyui" else name.replace(".", "_"))
        tensors |= {f"{key}.{down}.weight": a, f"{key}.{up}.weight": b, f"{key}.alpha": torch.tensor(float(alpha))}
    metadata = {"format": "pt"}
    if format == "kohya":
        rank, alpha = max(a.shape[0] for a, _, _ in layers.values()), config.lora_alpha
        metadata |= {
            "ss_network_module": "networks.lora_wan",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(alpha),
        }
    save_file(tensors, file, metadata=metadata)
    sort_header(file)


def import_adapter(file: str | os.PathLike[str], folder: Path) -> AdapterCard:
    """Read a LoRA file of another program as an adapter folder; returns its card.

    The card says what the file does not: base, data and steps are unknown. That it fits a base shows when it is loaded,
    by the names and shapes of its layers.

    Args:
        file: safetensors in one of the formats.
        folder: of the new adapter.

    Raises AdapterError for what is no such file, and for weights that are no LoRA of linear layers.
    """
    file = Path(file)
    tensors, metadata = _read(file)
    format = _format_of(tensors, file)
    layers = _layers(tensors, format, file)
    said = _peft_metadata(metadata)
    for kind in ("use_rslora", "use_dora"):
        if said.get(kind):
            raise AdapterError(f"adapter {file}: its metadata says {kind}, which is not a plain LoRA")
    state: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, layer in sorted(layers.items()):
        if layer.down is None or layer.up is None or layer.down.shape[0] != layer.up.shape[-1] or layer.down.ndim != 2:
            raise AdapterError(f"adapter {file}: the layer {module!r} lacks one of its two factors, or they do not fit")
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = layer.down, layer.up
        ranks[module] = layer.down.shape[0]
        alpha = _alpha_of(module, said) if layer.alpha is None else layer.alpha
        alphas[module] = float(ranks[module] if alpha is None else alpha)
    rank, alpha = max(ranks.values()), max(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={module: own for module, own in ranks.items() if own != rank},
        alpha_pattern={module: own for module, own in alphas.items() if own != alpha},
        target_modules=sorted(ranks),
    )
    source = {"file": file.name, "format": format, "sha256": sha256_file(file)}
    told = {key: value for key, value in metadata.items() if key.startswith(("ss_", "modelspec."))}
    card = AdapterCard(
        base_model="unknown",
        base_sha256="",
        stage="unknown",
        dataset="unknown",
        dataset_sha256="",
        config={"imported": source | ({"metadata": told} if told else {})},
        step=0,
    )
    return save_adapter(folder, state, config, card)


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}, dict(stored.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise AdapterError(
            f"adapter {file} cannot be read as safetensors: {e}; give a .safetensors file, or a train run's folder"
        ) from e


def _format_of(tensors: Iterable[str], file: Path) -> Format:
    for format, prefix in _PREFIXES.items():
        if any(key.startswith(prefix) for key in tensors):
            return format
    first = next(iter(sorted(tensors)), "nothing")
    raise AdapterError(
        f"adapter {file} has none of the keys of {', '.join(_PREFIXES)} (such as {first!r}): it is no LoRA for Wan, or "
        "of a program whose files cannot be read"
    )


def _layers(tensors: dict[str, torch.Tensor], format: Format, file: Path) -> dict[str, _Layer]:
    """The layers under diffusers' names."""
    layers: dict[str, _Layer] = {}
    foreign = []
    for key, value in tensors.items():
        match = re.fullmatch(
            r"(.+?)(?:\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight|\.(alpha))", key
        )
        module = _module_of(match[1], format) if match and key.startswith(_PREFIXES[format]) else None
        if match is None or module is None:
            foreign.append(key)
            continue
        if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise AdapterError(f"adapter {file}: {key} is in fp8, which rounds it away; give it in bf16, fp16 or fp32")
        layer = layers.setdefault(module, _Layer())
        if match[3]:
            layer.alpha = float(value)
        elif _PARTS[match[2]] == "down":
            layer.down = value
        else:
            layer.up = value
    if foreign:
        raise AdapterError(
            f"adapter {file}: {len(foreign)} of its {len(tensors)} tensors are no LoRA factors of Wan's linear layers, "
            f"such as {sorted(foreign)[0]!r}; without them it would be another adapter"
        )
    return layers


def _module_of(name: str, format: Format) -> str | None:
    """diffusers' name of a layer of a file; None for one that Wan does not have."""
    name = name.removeprefix(_PREFIXES[format])
    if format == "diffusers":
        return name
    inside, outside = ({v: k for k, v in table.items()} for table in (_IN_BLOCK, _OUTSIDE))
    if format == "kohya":
        inside, outside = ({k.replace(".", "_"): v for k, v in table.items()} for table in (inside, outside))
        name = re.sub(r"^blocks_(\d+)_", r"blocks.\1.", name)
    match = _BLOCK.fullmatch(name)
    if match is None:
        return outside.get(name)
    return f"blocks.{match[1]}.{inside[match[2]]}" if match[2] in inside else None


def _alpha_of(module: str, said: dict[str, Any]) -> float | None:
    """A layer's alpha by PEFT's configuration, whose patterns are ends of names."""
    for end, alpha in said.get("alpha_pattern", {}).items():
        if f".{module}".endswith(f".{end}"):
            return float(alpha)
    return said.get("lora_alpha")


def _peft_metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """PEFT's configuration, as diffusers keeps it beside the tensors; empty where it does not."""
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except json.JSONDecodeError:
        return {}
    return {key.removeprefix("transformer."): value for key, value in said.items()}
