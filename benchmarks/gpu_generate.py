"""One GPU at the real shape of Wan2.1-I2V-14B: seconds of a guided denoising step and of the decode, and MFU.

    python -m benchmarks.gpu_generate

The weights are random, as time and memory do not depend on them. Ours is `denoise` by attention backend, eager and
with its blocks compiled; the rival is the loop of diffusers' `WanImageToVideoPipeline` with the same settings. It needs
torch, transformers and diffusers, and neither Ray nor a network. 832x480 with 81 frames comes first, then 1280x720
while there is time. What does not fit into the memory or the time is said and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image

from benchmarks.gpu_model import (
    IMAGE_TOKENS,
    SHAPES,
    clean,
    keep,
    random_transformer,
    random_windows,
    row_of,
    synchronise,
    table,
)
from cinesynth.generate.course import Course
from cinesynth.generate.denoise import Conditions, decode, denoise
from cinesynth.wan.family import WAN21_I2V, ModelSpec
from cinesynth.wan.flops import transformer_flops

GUIDANCE = 5.0
STOCK = "diffusers' pipeline"
BEST = "ours, cuDNN, compiled"
VARIANTS: dict[str, dict[str, Any]] = {
    BEST: {"attention": "_native_cudnn", "compile": True},
    "ours": {},
    "ours, cuDNN": {"attention": "_native_cudnn"},
    "ours, compiled": {"compile": True},
}
"""Settings by variant, most telling first."""
if importlib.util.find_spec("flash_attn_interface"):
    VARIANTS["ours, FlashAttention-3"] = {"attention": "_flash_3"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure what fits into the minutes. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_generate", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="wan14b", help="of the transformer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="*", default=["832x480", "1280x720"], help="width x height in pixels, in turn")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=3, help="measured, of each variant")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.5, help="no variant is started after them")
    parser.add_argument("--variants", nargs="*", help="names of those to run; default: all")
    parser.add_argument("--out", type=Path, help="folder that gets the table and the figures as JSON")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    device, dtype = args.device, torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    transformer = random_transformer(args.shape, dtype, device)
    with torch.device(device):
        vae = AutoencoderKLWan().requires_grad_(False).eval()
    named = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    where = f"{named}, torch {torch.__version__}, {args.frames} frames, {args.shape}, random weights, {dtype}"
    print(f"{where}; model made in {time.monotonic() - started:.0f} s", flush=True)
    figures: dict[str, Any] = {"where": where}
    for size in args.sizes:
        rows: dict[str, Any] = {}
        for name, run in _runs(args, transformer, vae, size).items():
            if args.variants and name not in args.variants:
                continue
            if time.monotonic() - started > 60 * args.minutes:
                rows[name] = {"error": "no time left"}
                continue
            with clean(transformer):
                try:
                    rows[name] = run()
                except (torch.OutOfMemoryError, RuntimeError) as e:
                    rows[name] = {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"}
            print(f"{size}: {name}: {rows[name]}", flush=True)
        figures[size] = rows
    return _report(args, figures)


def spec_of(name: str, transformer: WanTransformer3DModel, vae: AutoencoderKLWan) -> ModelSpec:
    """Of a model that was made here and is in no folder."""
    return ModelSpec(
        name,
        WAN21_I2V,
        transformer.config.num_attention_heads,
        transformer.config.rope_max_seq_len,
        transformer.config.text_dim,
        IMAGE_TOKENS,
        transformer.config.image_dim,
        tuple(vae.config.latents_mean),
        tuple(vae.config.latents_std),
        None,
    )


def solver() -> UniPCMultistepScheduler:
    """Wan2.1's."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def _runs(
    args: argparse.Namespace, transformer: WanTransformer3DModel, vae: AutoencoderKLWan, size: str
) -> dict[str, Callable[[], dict[str, Any]]]:
    width, height = (int(side) for side in size.split("x"))
    (window,) = random_windows(args.shape, args.frames, height, width, count=1)
    shape = window["latents"].shape
    spec = spec_of(args.shape, transformer, vae)
    context = WAN21_I2V.text_tokens + IMAGE_TOKENS
    flops = 2 * transformer_flops(transformer.config, *shape[1:], context).forward
    conditions = Conditions.of_row({k: v for k, v in window.items() if k != "latents"}, window["prompt_embeds"][:20])

    def timed(course_of: Callable[[Callable[[int], None]], None]) -> dict[str, Any]:
        at: list[float] = []

        def stepped(step: int) -> None:
            synchronise(args.device)
            at.append(time.perf_counter())

        stepped(0)
        course_of(stepped)
        seconds = [b - a for a, b in zip(at[args.warmup :], at[args.warmup + 1 :], strict=False)]
        return row_of(seconds, at[args.warmup] - at[0], flops, args.device)

    def ours(levers: dict[str, Any]) -> dict[str, Any]:
        if "attention" in levers:
            transformer.set_attention_backend(levers["attention"])
        if levers.get("compile"):
            transformer.compile_repeated_blocks()
        transformer.eval()
        sampler: Any = SimpleNamespace(steps=args.warmup + args.steps, guidance_scale=GUIDANCE, seed=0)
        experts = {WAN21_I2V.experts[0]: transformer}
        dtype = transformer.proj_out.weight.dtype

        def sample(stepped: Callable[[int], None]) -> None:
            course = Course(on_step=lambda step, total: stepped(step))
            denoise(spec, experts, solver(), conditions, sampler, args.device, dtype, course)

        return timed(sample)

    def stock() -> dict[str, Any]:
        transformer.eval()
        pipeline = WanImageToVideoPipeline(None, None, vae, solver(), None, None, transformer)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.check_inputs = lambda *args, **kwargs: None  # it takes an image or its embedding, and needs both here
        dtype = transformer.proj_out.weight.dtype
        prompt = torch.zeros(1, WAN21_I2V.text_tokens, transformer.config.text_dim, dtype=dtype, device=args.device)

        def sample(stepped: Callable[[int], None]) -> None:
            def each(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
                stepped(step)
                return {}

            pipeline(
                image=Image.new("RGB", (width, height), (90, 120, 160)),
                prompt_embeds=prompt,
                negative_prompt_embeds=prompt,
                image_embeds=window["image_embeds"][None].to(args.device, dtype),
                height=height,
                width=width,
                num_frames=args.frames,
                num_inference_steps=args.warmup + args.steps,
                guidance_scale=GUIDANCE,
                output_type="latent",
                callback_on_step_end=each,
            )

        return timed(sample)

    def decoded() -> dict[str, Any]:
        latents = torch.randn(1, *shape, device=args.device)
        synchronise(args.device)
        begun = time.perf_counter()
        decode(spec, vae, latents)
        synchronise(args.device)
        return row_of([time.perf_counter() - begun], 0.0, 0.0, args.device)

    of_ours = {name: (lambda levers=levers: ours(levers)) for name, levers in VARIANTS.items()}
    return {STOCK: stock, BEST: of_ours.pop(BEST), "decode": decoded, **of_ours}


def _report(args: argparse.Namespace, figures: dict[str, Any]) -> dict[str, Any]:
    text = f"# {figures['where']}\n\n" + "\n".join(
        table(f"Guided step at {size} (decode: the whole video):", figures[size]) for size in args.sizes
    )
    first = figures[args.sizes[0]]
    ours = {name: row["s_per_step"] for name, row in first.items() if name in VARIANTS and "s_per_step" in row}
    stock = first.get(STOCK, {}).get("s_per_step")
    ratio = round(stock / min(ours.values()), 3) if stock and ours else None
    result = {
        "name": "gpu_generate",
        "figures": figures | {"stock_over_best": ratio},
        "targets": {"stock_over_best": 1.0},
        "pass": ratio is not None and ratio >= 1.0,
    }
    keep(result, text, args.out, f"{args.shape}x{args.frames}")
    return result


if __name__ == "__main__":
    main()
