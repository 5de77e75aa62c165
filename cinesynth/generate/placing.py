"""Whether each rank of a group has the whole weights, or a part of them, by the memory that a video takes.

    weights      bytes of the transformers, in the dtypes that they are loaded in
    beside       the VAE, and the text and image encoders, which rank 0 has where it makes videos of images
    activations  for the largest video, what takes more:
                 24 N D           denoising N tokens of width D
                 24,000 P / n     decoding frames of P pixels over n ranks, however many frames there are

24 bytes and 24,000 bytes are measured, not derived: on one GPU at the 14B shape, peak memory less the terms above was
23.9 N D at 32,760 tokens (14 with compiled blocks), and 24,060 P at 832x480, 23,740 P at 1280x720
(`benchmarks/results/gpu_generate_*.md`). It is an estimate, and PyTorch's own reserve comes on top.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch

from cinesynth.generate.ranks import Ranks
from cinesynth.wan.folder import model_folder, model_spec, read_json
from cinesynth.wan.placement import Memory, choose_strategy, device_bytes
from cinesynth.wan.stream import StoredWeights, values_in

log = logging.getLogger("cinesynth.generate")

Placing = Literal["replicate", "fsdp2"]

_DENOISE_BYTES, _DECODE_BYTES = 24, 24_000
_ENCODERS = ("vae", "text_encoder", "image_encoder")


def choose_placing(model: str, requested: str, sizes: Sequence[tuple[int, int, int]], ranks: Ranks) -> Placing:
    """How the weights lie on the ranks, on all of which this is called.

    Args:
        model: 'nano', a folder or a hub id.
        requested: `replicate`, `fsdp2`, or `auto`.
        sizes: (frames, height, width) of the videos to come.
        ranks: of the group.
    """
    if ranks.size == 1:
        return "replicate"
    dtype = torch.bfloat16 if ranks.device.startswith("cuda") else torch.float32
    memory = generation_memory(model, dtype, sizes, ranks.size)
    room = ranks.least(device_bytes(ranks.device))
    if not ranks.device.startswith("cuda"):
        room //= ranks.size  # they share the memory of their node
    name, _, reason = choose_strategy(requested, memory, room, ranks.size, ranks.size)
    if ranks.rank == 0:
        log.info("strategy %s: %s", name, reason)
    return "replicate" if name == "replicate" else "fsdp2"


def generation_memory(model: str, dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]], ranks: int = 1) -> Memory:
    """The memory of making videos.

    Args:
        model: 'nano', a folder or a hub id.
        dtype: of the computation.
        sizes: (frames, height, width) of the videos.
        ranks: that make each.
    """
    family = model_spec(model).family
    weights = sum(StoredWeights(model, dtype, expert).bytes for expert in family.experts)
    encoders = 0
    for part in _ENCODERS:
        itemsize = dtype.itemsize if part == "text_encoder" else 4  # the others are computed in fp32
        encoders += sum(itemsize * values_in(path) for path in (model_folder(model) / part).glob("*.safetensors"))
    config = read_json(model_folder(model) / family.experts[0] / "config.json", model)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    activations = {}
    for frames, height, width_px in sizes:
        tokens = family.tokens(*family.latent_shape(frames, height, width_px)[1:])
        activations[f"{frames}x{width_px}x{height}"] = video_bytes(tokens, width, height * width_px, ranks)
    return Memory(weights, {"encoders": encoders}, activations)


def video_bytes(tokens: int, width: int, pixels: int, ranks: int = 1) -> int:
    """What a video takes beside the model.

    Args:
        tokens: of it.
        width: of the transformer.
        pixels: of a frame.
        ranks: that decode it together.
    """
    return max(_DENOISE_BYTES * tokens * width, _DECODE_BYTES * pixels // ranks)
