"""ST-LPIPS: shift-tolerant LPIPS on AlexNet (Ghildyal and Liu, ECCV 2022, arXiv 2207.13686), lower is closer.

LPIPS with a trunk that hardly sees a shift by a pixel: where AlexNet takes every second value, this one first smooths
with a binomial filter of 3x3 (Zhang, arXiv 1904.11486), mirrored by two pixels at the borders. The weights are those of
the package `stlpips-pytorch`, trunk and heads; a number of this network is never one of LPIPS.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cinesynth.metrics import weights
from cinesynth.metrics.networks import ST_LPIPS_WEIGHTS

_LAYERS = {  # convolution and head of each layer in the file
    "net.slice1.0": "lin0",
    "net.slice2.5": "lin1",
    "net.slice3.9": "lin2",
    "net.slice4.11": "lin3",
    "net.slice5.13": "lin4",
}
_PARTS = ("weight", "bias")
_EPSILON = 1e-10


def smoothed(x_BCHW: Tensor) -> Tensor:
    """Every second value of a picture smoothed by (1, 2, 1) / 4 along both sides."""
    row = torch.tensor([0.25, 0.5, 0.25], device=x_BCHW.device)
    filters = torch.outer(row, row).expand(x_BCHW.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x_BCHW, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=x_BCHW.shape[1])


class ShiftTolerantLpips(nn.Module):
    """Two batches [B, 3, H, W] in [-1, 1], sides of at least 32, to distances [B]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        self.heads = nn.ParameterList([nn.Parameter(torch.empty(c.out_channels)) for c in self._layers()])
        for name in ("shift", "scale"):
            self.register_buffer(name, torch.empty(1, 3, 1, 1))

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        layers = zip(self._features(a_BCHW), self._features(b_BCHW), self.heads, strict=True)
        return torch.stack([torch.einsum("bchw,c->bhw", (a - b) ** 2, head).mean((1, 2)) for a, b, head in layers]).sum(
            0
        )

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        """Of each layer, with channels of length 1 at every pixel."""
        x = (x_BCHW - self.shift) / self.scale
        found = []
        for place, convolution in enumerate(self._layers()):
            if place in (1, 2):
                x = smoothed(F.max_pool2d(x, 3, stride=1))
            x = convolution(x)
            x = F.relu(smoothed(x) if place == 0 else x)
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return found

    def _layers(self) -> list[nn.Conv2d]:
        return [module for module in self.convolutions if isinstance(module, nn.Conv2d)]


def load_st_lpips(folder: str | None = None) -> ShiftTolerantLpips:
    """The network with the published weights, in evaluation mode, float32.

    Args:
        folder: folder that holds the weight file; default: the cache (see `weights.locate`).

    Raises:
        WeightsUnavailable: see `weights.locate`.
    """
    state = torch.load(weights.locate(ST_LPIPS_WEIGHTS, folder), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = ShiftTolerantLpips()
    model.to_empty(device="cpu")
    named = {f"convolutions.{i}.{part}": state[f"{name}.{part}"] for i, name in enumerate(_LAYERS) for part in _PARTS}
    named |= {f"heads.{i}": state[f"{head}.model.1.weight"].flatten() for i, head in enumerate(_LAYERS.values())}
    named |= {name: state[f"scaling_layer.{name}"] for name in ("shift", "scale")}
    model.load_state_dict(named)
    return model.eval().requires_grad_(False)
