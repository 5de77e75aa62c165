"""Random models of the real shape, and how variants on them are timed. Needs PyTorch and diffusers only."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.flops import peak_tflops

SHAPES: dict[str, dict[str, Any]] = {
    "wan14b": {
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "ffn_dim": 13824,
        "num_layers": 40,
        "text_dim": 4096,
        "freq_dim": 256,
        "image_dim": 1280,
        "added_kv_proj_dim": 5120,
        "rope_max_seq_len": 1024,
    },
    "nano": {
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "ffn_dim": 512,
        "num_layers": 6,
        "text_dim": 64,
        "freq_dim": 64,
        "image_dim": 64,
        "added_kv_proj_dim": 256,
        "rope_max_seq_len": 64,
    },
}
IMAGE_TOKENS = 257


def random_transformer(shape: str, dtype: torch.dtype, device: str) -> WanTransformer3DModel:
    """The shape's transformer with random weights, made on the device, in the dtypes in which it would be loaded."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = WanTransformer3DModel(in_channels=WAN21_I2V.in_channels, out_channels=16, **SHAPES[shape])
    finally:
        torch.set_default_dtype(default)
    kept = WanTransformer3DModel._keep_in_fp32_modules
    for name, parameter in transformer.named_parameters():
        if any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.float()
    config = transformer.config
    transformer.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
    return transformer.to(device).requires_grad_(False)


def random_windows(shape: str, frames: int, height: int, width: int, count: int) -> list[dict[str, torch.Tensor]]:
    """Encoded windows, as a dataset gives them."""
    latents, sizes = WAN21_I2V.latent_shape(frames, height, width), SHAPES[shape]
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "latents": torch.randn(latents, generator=draw),
            "condition_latents": torch.randn(latents, generator=draw),
            "prompt_embeds": torch.randn(60, sizes["text_dim"], generator=draw),
            "image_embeds": torch.randn(IMAGE_TOKENS, sizes["image_dim"], generator=draw),
        }
        for _ in range(count)
    ]


@contextmanager
def clean(transformer: WanTransformer3DModel) -> Iterator[None]:
    """Takes away afterwards what a variant put on the transformer."""
    try:
        yield
    finally:
        transformer.disable_gradient_checkpointing()
        transformer.set_attention_backend("native")  # what is set stays for all models of the process
        for block in transformer.blocks:
            block._compiled_call_impl = None
        if getattr(transformer, "peft_config", None):
            transformer.unload_lora()
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure(step: Callable[[int], float], warmup: int, steps: int, flops: float, device: str) -> dict[str, Any]:
    """Seconds of each step after the warm-up, peak memory, and the share of the device's peak."""
    first = time.perf_counter()
    for number in range(warmup):
        step(number)
    warmed = time.perf_counter() - first
    seconds = []
    for number in range(warmup, warmup + steps):
        synchronise(device)
        started = time.perf_counter()
        value = step(number)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
        if not torch.isfinite(torch.tensor(value)):
            raise FloatingPointError(f"step {number}: {value}")
    return row_of(seconds, warmed, flops, device)


def row_of(seconds: list[float], warmup: float, flops: float, device: str) -> dict[str, Any]:
    """A variant's figures, from the seconds of its steps, those of its warm-up, and the operations of a step."""
    median = statistics.median(seconds)
    row: dict[str, Any] = {"s_per_step": round(median, 4), "spread": round(max(seconds) - min(seconds), 4)}
    row |= {"warmup_s": round(warmup, 1), "tflops": round(flops / median / 1e12, 2)}
    if device.startswith("cuda"):
        peak = peak_tflops(torch.cuda.get_device_name())
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        row["mfu"] = round(flops / median / 1e12 / peak, 4) if peak and flops else None
    return row


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def table(title: str, rows: dict[str, Any]) -> str:
    lines = [
        title,
        "",
        "| variant | s/step | spread | warm-up s | peak GiB | TFLOP/s | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | |")
            continue
        mfu = "" if row.get("mfu") is None else f"{100 * row['mfu']:.1f} %"
        cells = (row["s_per_step"], row["spread"], row["warmup_s"], row.get("peak_gib", ""), row["tflops"], mfu)
        lines.append(f"| {name} | {' | '.join(str(c) for c in cells)} |")
    return "\n".join(lines) + "\n"


def keep(result: dict[str, Any], text: str, out: Path | None, shape: str) -> None:
    """Print the table and the line of JSON; write both into the folder `out`, named by benchmark, GPU and shape."""
    print("\n" + text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        gpu = "_".join(result["figures"]["where"].split(",")[0].lower().split())
        stem = f"{result['name']}_{gpu}_{shape}"
        (out / f"{stem}.md").write_text(text)
        (out / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
