"""Inception-v3 of 2015 (TensorFlow's graph `inception-2015-12-05`): the network that FID and KID are defined on.

As toshas/torch-fidelity @5e211a9 runs it. It differs from torchvision's Inception-v3: average pools leave the padding
out of the mean, the last block pools by maximum, and frames are resized as TensorFlow 1 does, without half-pixel
centres. Features are the 2048 numbers after the last pool. Layers bear the names of the published file.

Shape legend: B frames, C channels, H height, W width.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import weights
from cinesynth.metrics.networks import INCEPTION_WEIGHTS
from cinesynth.pictures import Frames

_SIDE = 299
_EPSILON = 1e-3
_FRAMES_AT_ONCE = 16

Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel]
"""Name, output channels and kernel of a convolution."""
Step = Layer | list[Layer] | str
"""A layer, layers side by side over one input, or a pool: `average` or `maximum`."""


def _block_5(pooled: int) -> list[list[Step]]:
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["average", ("branch_pool", pooled, 1)],
    ]


def _block_6(width: int) -> list[list[Step]]:
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", width, 1), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        [
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, (7, 1)),
            ("branch7x7dbl_3", width, (1, 7)),
            ("branch7x7dbl_4", width, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ],
        ["average", ("branch_pool", 192, 1)],
    ]


def _block_7(pool: str) -> list[list[Step]]:
    return [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [pool, ("branch_pool", 192, 1)],
    ]


_BLOCKS: dict[str, list[list[Step]]] = {
    "Mixed_5b": _block_5(32),
    "Mixed_5c": _block_5(64),
    "Mixed_5d": _block_5(64),
    "Mixed_6a": [
        [("branch3x3", 384, 3)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["maximum"],
    ],
    "Mixed_6b": _block_6(128),
    "Mixed_6c": _block_6(160),
    "Mixed_6d": _block_6(160),
    "Mixed_6e": _block_6(192),
    "Mixed_7a": [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        ],
        ["maximum"],
    ],
    "Mixed_7b": _block_7("average"),
    "Mixed_7c": _block_7("maximum"),
}
_HALVING = ("Mixed_6a", "Mixed_7a")
"""Blocks whose branches end in a stride of 2 without padding."""


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; padded to its input's size where its stride is 1."""

    def __init__(self, width: int, channels: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        height_width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height_width[0] // 2, height_width[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(width, channels, height_width, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=_EPSILON)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)), inplace=True)


class Block(nn.Module):
    """Branches over one input, concatenated along the channels; `stride` is that of each branch's last step."""

    def __init__(self, width: int, branches: list[list[Step]], stride: int) -> None:
        super().__init__()
        self.branches, self.stride = branches, stride
        self.channels = 0
        for branch in branches:
            channels = width
            for step in branch:
                if isinstance(step, str):
                    continue
                layers = step if isinstance(step, list) else [step]
                for name, out, kernel in layers:
                    self.add_module(name, Unit(channels, out, kernel, stride if step is branch[-1] else 1))
                channels = sum(out for _, out, _ in layers)
            self.channels += channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([self._branch(branch, x_BCHW) for branch in self.branches], dim=1)

    def _branch(self, branch: list[Step], x: Tensor) -> Tensor:
        for step in branch:
            if step == "average":
                x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            elif step == "maximum":
                x = F.max_pool2d(x, 3, self.stride, padding=0 if self.stride == 2 else 1)
            elif isinstance(step, list):
                x = torch.cat([self.get_submodule(name)(x) for name, _, _ in step], dim=1)
            else:
                x = self.get_submodule(step[0])(x)
        return x


class Inception(nn.Module):
    """RGB frames [B, 3, 299, 299] in [-1, 1) to features [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, pad=False)
        width = 192
        for name, branches in _BLOCKS.items():
            block = Block(width, branches, 2 if name in _HALVING else 1)
            self.add_module(name, block)
            width = block.channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def resize_as_tensorflow_1(x_BCHW: Tensor, side: int = _SIDE) -> Tensor:
    """Bilinear resize of float pixels to side x side as TensorFlow 1's `resize_bilinear`: output pixel i lies at
    i * size / side of the input, so the first pixels of both lie on each other; positions in float32."""
    for axis in (-1, -2):
        size = x_BCHW.shape[axis]
        scale = torch.tensor(size / side, dtype=torch.float32, device=x_BCHW.device)
        place = torch.arange(side, dtype=torch.float32, device=x_BCHW.device) * scale
        low = place.long()
        weight = (place - low).to(x_BCHW.dtype)
        before = x_BCHW.index_select(axis, low)
        after = x_BCHW.index_select(axis, (low + 1).clamp_max(size - 1))
        x_BCHW = before + (after - before) * (weight if axis == -1 else weight[:, None])
    return x_BCHW


def preprocess(frames_THWC: Frames, device: str | torch.device = "cpu") -> Tensor:
    """uint8 RGB frames [T, H, W, 3] to the network's float32 input [T, 3, 299, 299]."""
    x_TCHW = torch.tensor(frames_THWC).to(device).permute(0, 3, 1, 2).float()
    return (resize_as_tensorflow_1(x_TCHW) - 128) / 128


def frame_features(model: nn.Module, videos: Sequence[Frames]) -> NDArray[np.float64]:
    """Features [B, T, 2048] of every frame of videos of one length, each uint8 RGB [T, H, W, 3]."""
    device = next(model.parameters()).device
    rows = []
    for video in videos:
        parts = np.array_split(video, -(-len(video) // _FRAMES_AT_ONCE))
        rows.append(torch.cat([model(preprocess(part, device)).double().cpu() for part in parts]))
    return torch.stack(rows).numpy()


def load_inception(folder: str | None = None, device: str | torch.device = "cpu") -> Inception:
    """The network with the published weights, in evaluation mode, float32.

    Args:
        folder: folder that holds the weight file; default: the cache (see `weights.locate`).
        device: torch device.

    Raises:
        WeightsUnavailable: see `weights.locate`; or the file holds other tensors.
    """
    return read_inception(weights.locate(INCEPTION_WEIGHTS, folder)).to(device)


def read_inception(path: Path) -> Inception:
    """The network of a state dict. Its classifier is left out: features come before it.

    Raises WeightsUnavailable for a file that is no state dict of this network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        with torch.device("meta"):
            model = Inception()
        model.to_empty(device="cpu")
        model.load_state_dict(state)
    except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as e:
        raise WeightsUnavailable(f"{path} holds no Inception-v3 of 2015: {' '.join(str(e).split())[:200]}") from e
    return model.eval().requires_grad_(False)
