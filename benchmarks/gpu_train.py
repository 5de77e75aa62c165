"""One GPU at the real shape of Wan2.1-I2V-14B: seconds, memory and MFU of a LoRA step and of a denoising step.

    python -m benchmarks.gpu_train --frames 49 81

The weights are random, as time and memory do not depend on them. The rival is the loop of diffusers' own training
scripts: accelerate's bf16 autocast, PEFT's adapter, every block computed again, AdamW. Ours is `TrainLoop`, with one
lever after another. It needs torch, transformers, peft, accelerate and diffusers, and neither Ray nor a network. Each
variant runs in turn on the same weights; what does not fit into the memory or the time is said and left out. Of the
lengths in frames, the first is taken with all variants, the others with the most telling ones if time is left.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from benchmarks.gpu_model import IMAGE_TOKENS, SHAPES, clean, keep, measure, random_transformer, random_windows, table
from cinesynth.train.batch import ListedClips
from cinesynth.train.loop import TrainLoop
from cinesynth.train.state import Saved
from cinesynth.train.strategy import Replicate, Strategy, World
from cinesynth.wan.family import TARGET_ALIASES, WAN21_I2V
from cinesynth.wan.flops import transformer_flops
from cinesynth.wan.inputs import model_input, pad_prompt

LORA_RANK, LORA_ALPHA = 32, 32.0
STOCK = "diffusers' loop"
LEVERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, compiled, cuDNN, attention kept": {
        "compile": True,
        "attention": "cudnn",
        "activation_checkpointing": "attention",
    },
    "ours, cuDNN": {"attention": "cudnn"},
    "ours, compiled": {"compile": True},
    "ours, compiled, attention kept": {"compile": True, "activation_checkpointing": "attention"},
    "ours, compiled, attention kept, deterministic": {
        "compile": True,
        "activation_checkpointing": "attention",
        "deterministic": True,
    },
    "ours, cuDNN, attention kept": {"attention": "cudnn", "activation_checkpointing": "attention"},
    "ours, compiled, cuDNN": {"compile": True, "attention": "cudnn"},
    "ours, attention kept": {"activation_checkpointing": "attention"},
    "ours, flash": {"attention": "flash"},
    "ours, efficient": {"attention": "efficient"},
}
"""Settings of `TrainConfig` by variant, most telling first."""
OF_OTHER_LENGTHS = [STOCK, "ours, compiled, cuDNN, attention kept", "ours", "denoising, compiled, cuDNN"]
"""Variants that run at the lengths after the first, too."""
DENOISING: dict[str, dict[str, Any]] = {
    "as loaded": {},
    "cuDNN": {"attention": "cudnn"},
    "compiled, cuDNN": {"attention": "cudnn", "compile": True},
}


class NoCheckpoints:
    """Nothing to continue from, nothing kept."""

    def latest(self) -> Saved | None:
        return None

    def save(self, saved: Saved) -> None:
        raise AssertionError("a benchmark's loop takes single steps")

    def flush(self) -> None:
        pass


def our_loop(
    transformer: WanTransformer3DModel,
    windows: list[dict[str, torch.Tensor]],
    device: str,
    levers: dict[str, Any],
    strategy: Strategy | None = None,
) -> TrainLoop:
    """The project's training loop, of one window a step; the base is replicated by default."""
    plain = {"activation_checkpointing": "full", "attention": "auto", "compile": False, "deterministic": False}
    settings = SimpleNamespace(
        mode="lora",
        lora=SimpleNamespace(rank=LORA_RANK, alpha=LORA_ALPHA, targets="attention"),
        optimizer=SimpleNamespace(
            algorithm="adamw",
            lr=1e-4,
            warmup=0.0,
            steps=1000,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            batch_size=1,
            max_grad_norm=1.0,
        ),
        flow=SimpleNamespace(distribution="uniform", shift=3.0),
        caption_dropout=0.1,
        seed=0,
        micro_batch=1,
        **{**plain, **levers},
    )
    dtype = transformer.proj_out.weight.dtype
    prompt = windows[0]["prompt_embeds"][:1]
    world = World(device=device)
    return TrainLoop(
        settings,  # type: ignore[arg-type]  # the same fields, without pydantic
        WAN21_I2V,
        transformer,
        ListedClips(windows),
        ListedClips(),
        prompt,
        strategy or Replicate(world),
        NoCheckpoints(),
        lambda first, events: None,
        world,
        dtype,
    )


def our_step(
    transformer: WanTransformer3DModel, windows: list[dict[str, torch.Tensor]], device: str, levers: dict[str, Any]
) -> Callable[[int], float]:
    """One optimiser step of `our_loop`; returns its loss."""
    loop = our_loop(transformer, windows, device, levers)
    return lambda step: float(loop.train_step(step)["loss"])


def stock_step(
    transformer: WanTransformer3DModel, windows: list[dict[str, torch.Tensor]], device: str
) -> Callable[[int], float]:
    """One optimiser step as diffusers' LoRA scripts take it; returns its loss."""
    bf16 = transformer.proj_out.weight.dtype == torch.bfloat16
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device == "cpu")
    return written_out_step(transformer, windows, device, accelerator.autocast, accelerator.backward)


def written_out_step(
    transformer: WanTransformer3DModel,
    windows: list[dict[str, torch.Tensor]],
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> Callable[[int], float]:
    """One optimiser step in PyTorch, with PEFT's adapter and every block computed again; returns its loss."""
    suffixes = [s for group in TARGET_ALIASES["attention"] for s in WAN21_I2V.adapter_targets[group]]
    transformer.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=suffixes))
    trained = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    transformer.enable_gradient_checkpointing()
    transformer.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    dtype = transformer.proj_out.weight.dtype

    def step(number: int) -> float:
        window = {name: value[None].to(device) for name, value in windows[number % len(windows)].items()}
        prompt = pad_prompt(WAN21_I2V, window["prompt_embeds"][0])[None]
        latents, noise = window["latents"], torch.randn_like(window["latents"])
        sigma = torch.rand(1, device=device)
        noisy = (1 - sigma) * latents + sigma * noise
        with autocast():
            velocity = transformer(
                hidden_states=model_input(WAN21_I2V, noisy, window["condition_latents"]).to(dtype),
                timestep=sigma * 1000,
                encoder_hidden_states=prompt.to(dtype),
                encoder_hidden_states_image=window["image_embeds"].to(dtype),
                return_dict=False,
            )[0]
        loss = F.mse_loss(velocity.float(), noise - latents)
        backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def denoising_step(
    transformer: WanTransformer3DModel, window: dict[str, torch.Tensor], device: str, levers: dict[str, Any]
) -> Callable[[int], float]:
    """One denoising step with guidance, which is two forward passes; returns the result's mean square."""
    if "attention" in levers:
        transformer.set_attention_backend(f"_native_{levers['attention']}")
    if levers.get("compile"):
        transformer.compile_repeated_blocks()
    transformer.eval()
    dtype = transformer.proj_out.weight.dtype
    batch = {name: value[None].to(device) for name, value in window.items()}
    texts = [
        pad_prompt(WAN21_I2V, p)[None].to(dtype) for p in (batch["prompt_embeds"][0], batch["prompt_embeds"][0, :1])
    ]
    inputs = model_input(WAN21_I2V, batch["latents"], batch["condition_latents"]).to(dtype)

    @torch.inference_mode()
    def step(number: int) -> float:
        timestep = torch.full((1,), 900.0 - number, device=device)
        image = batch["image_embeds"].to(dtype)
        one, other = (transformer(inputs, timestep, text, image, return_dict=False)[0] for text in texts)
        return (other + 5.0 * (one - other)).float().square().mean().item()

    return step


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_train", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="wan14b", help="of the transformer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="832x480", help="width x height in pixels")
    parser.add_argument("--frames", type=int, nargs="+", default=[49, 81], help="of a window, one length after another")
    parser.add_argument("--steps", type=int, default=5, help="measured, of each variant")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5.5, help="no variant is started after them")
    parser.add_argument("--variants", nargs="*", help="names of the variants to run, or parts of them")
    parser.add_argument("--out", type=Path, help="folder that gets the table and the figures as JSON")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    device, dtype = args.device, torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    transformer = random_transformer(args.shape, dtype, device)
    named = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    where = f"{named}, torch {torch.__version__}, {args.shape}, random weights, {dtype}"
    print(f"{where}; model made in {time.monotonic() - started:.0f} s", flush=True)
    ends = started + 60 * args.minutes
    first, *others = args.frames
    lengths = [at_length(args, transformer, first, ends, args.variants or [""])]
    lengths += [at_length(args, transformer, frames, ends, args.variants or OF_OTHER_LENGTHS) for frames in others]
    return report(args, where, lengths)


def at_length(
    args: argparse.Namespace, transformer: WanTransformer3DModel, frames: int, ends: float, wanted: list[str]
) -> dict[str, Any]:
    """Figures of windows of so many frames.

    Args:
        ends: time on the monotonic clock after which no variant starts.
        wanted: the variants whose name is one of these run; where none has such a name, those whose name has it as a
            part.
    """
    width, height = (int(side) for side in args.size.split("x"))
    windows = random_windows(args.shape, frames, height, width, count=4)
    context = WAN21_I2V.text_tokens + IMAGE_TOKENS
    flops = transformer_flops(transformer.config, *windows[0]["latents"].shape[1:], context)
    names = [STOCK, *LEVERS, *(f"denoising, {name}" for name in DENOISING)]
    chosen = {name for part in wanted for name in ([part] if part in names else [n for n in names if part in n])}
    print(f"{args.size}x{frames}:", flush=True)

    def run(rows: dict[str, Any], name: str, make: Callable[[], Callable[[int], float]], work: float) -> None:
        if name not in chosen:
            return
        if time.monotonic() > ends:
            rows[name] = {"error": "no time left"}
            return
        with clean(transformer):
            try:
                rows[name] = measure(make(), args.warmup, args.steps, work, args.device)
            except (torch.OutOfMemoryError, RuntimeError) as e:
                rows[name] = {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"}
        print(f"{name}: {rows[name]}", flush=True)

    training: dict[str, Any] = {}
    work = flops.training(frozen=True)
    run(training, STOCK, lambda: stock_step(transformer, windows, args.device), work)
    for name, levers in LEVERS.items():
        run(training, name, lambda levers=levers: our_step(transformer, windows, args.device, levers), work)
    denoising: dict[str, Any] = {}
    for name, levers in DENOISING.items():
        make = lambda levers=levers: denoising_step(transformer, windows[0], args.device, levers)  # noqa: E731
        run(denoising, f"denoising, {name}", make, 2 * flops.forward)
    ours = {name: row["s_per_step"] for name, row in training.items() if name != STOCK and "s_per_step" in row}
    stock = training.get(STOCK, {}).get("s_per_step")
    best = min(ours, key=ours.__getitem__, default=None)
    return {
        "size": f"{args.size}x{frames}",
        "training_pflop": float(f"{work / 1e15:.4g}"),
        "denoising_pflop": float(f"{2 * flops.forward / 1e15:.4g}"),
        "training": training,
        "denoising": denoising,
        "best": best,
        "stock_over_best": round(stock / ours[best], 3) if stock and best else None,
    }


def report(args: argparse.Namespace, where: str, lengths: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the tables and the line of JSON; keep them where `--out` says. What passes is the first length."""
    lines = [f"# {where}\n"]
    for found in lengths:
        training = f"LoRA step, rank {LORA_RANK} on attention, {found['size']}, {found['training_pflop']:.2f} PFLOP:"
        denoising = f"Denoising step with guidance, {found['size']}, {found['denoising_pflop']:.2f} PFLOP:"
        lines += [table(training, found["training"]), table(denoising, found["denoising"])]
    first, *others = lengths
    figures = {"where": where, **first, "other_lengths": {found["size"]: found for found in others}}
    passed = first["stock_over_best"] is not None and first["stock_over_best"] >= 1.0
    result = {"name": "gpu_train", "figures": figures, "targets": {"stock_over_best": ">= 1.0"}, "pass": passed}
    keep(result, "\n".join(lines), args.out, f"{args.shape}_{first['size']}")
    return result


if __name__ == "__main__":
    main()
