"""What the tests show on a CPU, shown on one GPU: equal results, exact continuation, no wait for the GPU in a block.

    python -m benchmarks.gpu_check

The model has nano's shape and random weights, in fp32 without TF32. Each check compares the GPU with the CPU, or a run
that went on with one that was never stopped. It needs what `gpu_train` needs, and no figure is a matter of speed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from benchmarks.gpu_generate import solver, spec_of
from benchmarks.gpu_model import keep, random_transformer, random_windows
from benchmarks.gpu_train import our_loop
from cinesynth.generate.course import Course
from cinesynth.generate.denoise import Conditions, decode, denoise
from cinesynth.generate.state import SamplerState
from cinesynth.train.loop import TrainLoop
from cinesynth.train.strategy import FullyShard, World
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.inputs import model_input
from cinesynth.wan.padding import collapse_padding

STEPS = 8
SIZE = 5, 96, 64
"""Frames, height and width of the windows."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run every check. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checks", nargs="*", help="parts of the names of those to run; default: all")
    parser.add_argument("--out", type=Path, help="folder that gets the table and the figures as JSON")
    args = parser.parse_args(arguments)
    device = args.device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    named = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    where = f"{named}, torch {torch.__version__}, nano, random weights, torch.float32"
    checks = {
        "denoising: GPU against CPU": (denoised_there, 1e-4),
        "denoising: collapsed padding against stock attention": (padding_collapsed, 1e-4),
        "denoising: blocks compiled against eager": (compiled, 1e-4),
        "denoising: continued from a state against undisturbed": (continued, 0.0),
        "denoising: waits for the GPU in a forward pass": (waits, 0.0),
        "decoding: GPU against CPU, in levels of 255": (decoded_there, 1.0),
        "training: losses on GPU against CPU": (trained_there, 1e-4),
        "training: two undisturbed runs of the faster kernels": (twice, 0.05),
        "training, deterministic: continued from a state against undisturbed": (training_continued, 0.0),
        "training, deterministic, bf16, compiled, attention kept: the same": (training_continued_fast, 0.0),
        "training: FSDP2 on NCCL against replicate": (sharded, 1e-4),
        "training: bf16 base against fp32, median loss": (in_bf16, 0.05),
    }
    found: dict[str, Any] = {}
    for name, (check, most) in checks.items():
        if args.checks and not any(part in name for part in args.checks):
            continue
        try:
            value: float | str = check(device)
        except Exception as e:  # the others are to be run all the same
            value = f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"
        found[name] = {"value": value, "most": most, "holds": not isinstance(value, str) and value <= most}
        print(f"{name}: {found[name]}", flush=True)
    lines = [f"| {name} | {row['value']} | {row['most']:g} |" for name, row in found.items()]
    text = "\n".join(
        (
            f"# {where}",
            "",
            "Largest difference, relative to the largest value:",
            "",
            "| check | found | at most |",
            "|---|---|---|",
            *lines,
            "",
        )
    )
    passed = all(row["holds"] for row in found.values())
    result = {
        "name": "gpu_check",
        "figures": {"where": where, "checks": found},
        "targets": {"all hold": True},
        "pass": passed,
    }
    keep(result, text, args.out, "nano")
    return result


def denoised_there(device: str) -> float:
    return _apart(_denoised(device, _transformer(device)), _denoised("cpu", _transformer("cpu")))


def padding_collapsed(device: str) -> float:
    transformer = _transformer(device)
    stock = _denoised(device, transformer)
    collapse_padding(transformer, WAN21_I2V)
    return _apart(_denoised(device, transformer), stock)


def compiled(device: str) -> float:
    transformer = _transformer(device)
    eager = _denoised(device, transformer)
    transformer.compile_repeated_blocks()
    return _apart(_denoised(device, transformer), eager)


def continued(device: str) -> float:
    """The state is of the middle, and comes back out of its file."""
    transformer = _transformer(device)
    kept: list[bytes] = []
    whole = _denoised(
        device, transformer, Course(keep_every=STEPS // 2, keep=lambda state: kept.append(state.to_bytes()))
    )
    return _apart(_denoised(device, transformer, Course(state=SamplerState.from_bytes(kept[0]))), whole)


def waits(device: str) -> float:
    """How often one forward pass of the transformer waits for the device, by PyTorch's own count."""
    transformer = _transformer(device)
    (window,) = random_windows("nano", *SIZE, count=1)
    window = {name: value[None].to(device) for name, value in window.items()}
    inputs = model_input(WAN21_I2V, window["latents"], window["condition_latents"])
    prompt = torch.zeros(1, WAN21_I2V.text_tokens, transformer.config.text_dim, device=device)
    timestep = torch.full((1,), 900.0, device=device)
    with torch.no_grad(), _counted(device) as count:
        transformer(inputs, timestep, prompt, window["image_embeds"], return_dict=False)
    return count()


def decoded_there(device: str) -> float:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=16, decoder_base_dim=16, num_res_blocks=1).requires_grad_(False).eval()
    spec = spec_of("nano", _transformer("cpu"), vae)
    frames, height, width = SIZE
    latents = torch.randn(1, *WAN21_I2V.latent_shape(frames, height, width))
    here = decode(spec, vae, latents).astype(int)
    there = decode(spec, vae.to(device), latents.to(device)).astype(int)
    return float(abs(here - there).max())


def trained_there(device: str) -> float:
    return _apart(_losses(device), _losses("cpu"))


def twice(device: str) -> float:
    """Weights after the same 8 steps."""
    loops = [our_loop(_transformer(device), _windows(), device, {}) for _ in range(2)]
    for loop in loops:
        for step in range(STEPS):
            loop.train_step(step)
    return _weights_apart(*loops)


def training_continued_fast(device: str) -> float:
    levers = {"compile": True, "activation_checkpointing": "attention"}
    return training_continued(device, torch.bfloat16 if device.startswith("cuda") else torch.float32, levers)


def training_continued(device: str, dtype: torch.dtype = torch.float32, levers: dict[str, Any] | None = None) -> float:
    """Weights after 8 steps, against 4 and, in another loop from its state, 4 more."""
    levers = {"deterministic": True, **(levers or {})}
    whole, first, second = (our_loop(_transformer(device, dtype), _windows(), device, levers) for _ in range(3))
    for step in range(STEPS):
        whole.train_step(step)
    for step in range(STEPS // 2):
        first.train_step(step)
    second.strategy.restore(first.strategy.state())
    for step in range(STEPS // 2, STEPS):
        second.train_step(step)
    return _weights_apart(second, whole)


def _weights_apart(one: TrainLoop, other: TrainLoop) -> float:
    weights = one.adapter()
    return max(_apart(weights[name], value) for name, value in other.adapter().items())


def sharded(device: str) -> float:
    world = World(device=device)
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            return _apart(_losses(device, FullyShard(world)), _losses(device))
        finally:
            dist.destroy_process_group()


def in_bf16(device: str) -> float:
    losses = [_losses(device, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    low, full = (statistics.median(values.tolist()) for values in losses)
    return abs(low - full) / full


def _transformer(device: str, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return random_transformer("nano", dtype, "cpu").to(device).eval()


def _windows() -> list[dict[str, torch.Tensor]]:
    return random_windows("nano", *SIZE, count=4)


def _denoised(device: str, transformer: WanTransformer3DModel, course: Course | None = None) -> torch.Tensor:
    (window,) = random_windows("nano", *SIZE, count=1)
    conditions = Conditions.of_row({k: v for k, v in window.items() if k != "latents"}, window["prompt_embeds"][:20])
    sampler: Any = SimpleNamespace(steps=STEPS, guidance_scale=5.0, seed=0, flow_shift=5.0)
    experts = {WAN21_I2V.experts[0]: transformer}
    spec = spec_of("nano", transformer, AutoencoderKLWan(base_dim=8, decoder_base_dim=8, num_res_blocks=1))
    return denoise(spec, experts, solver(), conditions, sampler, device, torch.float32, course or Course())


def _losses(device: str, strategy: FullyShard | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    loop = our_loop(_transformer(device, dtype), _windows(), device, {}, strategy)
    return torch.tensor([loop.train_step(step)["loss"] for step in range(STEPS)])


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    one, other = one.double().cpu(), other.double().cpu()
    return float(f"{((one - other).abs().max() / other.abs().max()).item():.2e}")


@contextmanager
def _counted(device: str) -> Iterator[Callable[[], int]]:
    """Counts what makes the CPU wait for the GPU; nothing does where there is none."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if device.startswith("cuda"):
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("called a synchronizing" in str(warning.message) for warning in told)
        finally:
            if device.startswith("cuda"):
                torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
