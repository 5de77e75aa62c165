"""Floating-point operations of a Wan transformer, for MFU: the share of a device's peak that training reaches.

A multiplication and an addition are two operations. Only matrix products count. Let N be video tokens, D the width, F
the feed-forward width, L the layers and C the context tokens of text and image. One forward pass takes, a sample:

    linear layers      L (2 N (4 D D)            self-attention's q, k, v, out
                        + 2 N (2 D D) + 2 C (2 D D)     cross-attention's q, out; k and v of the context
                        + 2 N (2 D F))
    attention          L (4 N N D + 4 N C D)     scores and weighted sum

Training runs the forward pass once and, backward, through frozen linear layers once (gradients of their inputs) and
through trained ones twice (of their weights, too); attention takes twice its forward's. What is computed again to save
memory does not count: MFU is of the work that the step is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cinesynth.wan.family import Family

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bf16 peak by a part of the device's name, from NVIDIA's data sheets (SXM forms)."""


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass of one sample."""

    linear: float
    attention: float

    @property
    def forward(self) -> float:
        """Of the forward pass."""
        return self.linear + self.attention

    def training(self, frozen: bool) -> float:
        """Of forward and backward pass, nothing computed again; `frozen`: the linear layers are not trained. A LoRA's
        own layers are left out: they are under 1 %."""
        return self.linear * (2 if frozen else 3) + self.attention * 3


def transformer_flops(config: Any, latent_frames: int, rows: int, columns: int, context: int) -> Flops:
    """Those of a `WanTransformer3DModel`.

    Args:
        config: of the transformer.
        latent_frames, rows, columns: of the latents.
        context: text and image tokens.
    """
    time, height, width = config.patch_size
    tokens = (latent_frames // time) * (rows // height) * (columns // width)
    return _of_tokens(config, tokens, context)


def video_flops(
    family: Family, shape: Any, context: int, video: tuple[int, int, int], steps: int, guided: bool
) -> float:
    """Operations of all forward passes of a video; its encoding and decoding are left out.

    Args:
        family: of the model.
        shape: the transformer's `num_layers`, `num_attention_heads`, `attention_head_dim` and `ffn_dim`.
        context: text and image tokens.
        video: frames, height and width.
        steps: of denoising.
        guided: each step has a second pass, with the negative prompt.
    """
    tokens = family.tokens(*family.latent_shape(*video)[1:])
    return _of_tokens(shape, tokens, context).forward * steps * (2 if guided else 1)


def _of_tokens(config: Any, tokens: int, context: int) -> Flops:
    dim = config.num_attention_heads * config.attention_head_dim
    self_attention = 2 * tokens * 4 * dim**2
    cross_attention = 2 * tokens * 2 * dim**2 + 2 * context * 2 * dim**2
    feed_forward = 2 * tokens * 2 * dim * config.ffn_dim
    products = 4 * tokens * dim * (tokens + context)
    layers = config.num_layers
    return Flops(layers * (self_attention + cross_attention + feed_forward), float(layers * products))


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak of a device, in TFLOP/s; None for one that the table lacks, such as a CPU."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device_name.upper()), None)
