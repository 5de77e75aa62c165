"""I3D (RGB, Kinetics-400): the network whose logits define FVD and KVD.

Carreira and Zisserman, arXiv 1705.07750, as published at tf-hub deepmind/i3d-kinetics-400/1: TensorFlow's "SAME"
padding (asymmetric where the total is odd), batch normalisation without scale and with epsilon 1e-3, which is folded
into the convolutions here. Features are the 400 logits before the softmax, averaged over time.

Shape legend: B videos, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cinesynth.errors import MediaError
from cinesynth.metrics import weights
from cinesynth.metrics.networks import I3D_FEATURES, I3D_MIN_FRAMES, I3D_WEIGHTS
from cinesynth.pictures import Frames

_SIDE = 224
_EPSILON = 1e-3
_FRAMES_AT_ONCE = 8  # of a video in full size as floats
_CHANNELS = {  # output channels: 1x1; reduce and 3x3; reduce and 3x3; pool projection
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `size` in TensorFlow's "SAME" mode: ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Unit3D(nn.Module):
    """Convolution with "SAME" padding, the folded batch normalisation, and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        pads = [same_padding(size, self.kernel, self.stride) for size in x_BCTHW.shape[2:]]
        if all(before == after for before, after in pads):
            symmetric = [before for before, _ in pads]
            y = F.conv3d(x_BCTHW, self.conv.weight, self.conv.bias, self.stride, symmetric)
        else:
            y = self.conv(F.pad(x_BCTHW, [p for pair in reversed(pads) for p in pair]))  # F.pad: last axis first
        return y.relu_()


class MaxPool3d(nn.Module):
    """Max pooling with "SAME" padding: torch's symmetric padding, and `ceil_mode` where one more is due at the end."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        axes = zip(x_BCTHW.shape[2:], self.kernel, self.stride, strict=True)
        before = [same_padding(size, kernel, stride)[0] for size, kernel, stride in axes]
        return F.max_pool3d(x_BCTHW, self.kernel, self.stride, before, ceil_mode=True)


class Mixed(nn.Module):
    """Inception block: four branches over the same input, concatenated along the channels."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce_1, three_1, reduce_2, three_2, pooled = channels
        self.branch_0 = Unit3D(in_channels, one)
        self.branch_1 = nn.Sequential(Unit3D(in_channels, reduce_1), Unit3D(reduce_1, three_1, 3))
        self.branch_2 = nn.Sequential(Unit3D(in_channels, reduce_2), Unit3D(reduce_2, three_2, 3))
        self.branch_3 = nn.Sequential(MaxPool3d((3, 3, 3), (1, 1, 1)), Unit3D(in_channels, pooled))
        self.out_channels = one + three_1 + three_2 + pooled

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        branches = (self.branch_0, self.branch_1, self.branch_2, self.branch_3)
        return torch.cat([branch(x_BCTHW) for branch in branches], dim=1)


class I3D(nn.Module):
    """RGB video [B, 3, T, 224, 224] in [-1, 1] to logits [B, 400]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential()
        self.trunk.add_module("Conv3d_1a_7x7", Unit3D(3, 64, 7, 2))
        self.trunk.add_module("MaxPool3d_2a_3x3", MaxPool3d((1, 3, 3), (1, 2, 2)))
        self.trunk.add_module("Conv3d_2b_1x1", Unit3D(64, 64))
        self.trunk.add_module("Conv3d_2c_3x3", Unit3D(64, 192, 3))
        self.trunk.add_module("MaxPool3d_3a_3x3", MaxPool3d((1, 3, 3), (1, 2, 2)))
        pools = {
            "Mixed_3c": ("MaxPool3d_4a_3x3", MaxPool3d((3, 3, 3), (2, 2, 2))),
            "Mixed_4f": ("MaxPool3d_5a_2x2", MaxPool3d((2, 2, 2), (2, 2, 2))),
        }
        width = 192
        for name, channels in _CHANNELS.items():
            block = Mixed(width, channels)
            self.trunk.add_module(name, block)
            width = block.out_channels
            if name in pools:
                self.trunk.add_module(*pools[name])
        self.logits = nn.Conv3d(width, I3D_FEATURES, 1)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Logits averaged over time. Raises MediaError below 10 frames, where the temporal pooling runs dry."""
        frames, height, width = video_BCTHW.shape[2:]
        if frames < I3D_MIN_FRAMES:
            raise MediaError(f"I3D needs at least {I3D_MIN_FRAMES} frames, not {frames}; generate or cut longer videos")
        if (height, width) != (_SIDE, _SIDE):
            raise MediaError(f"I3D takes {_SIDE}x{_SIDE} pixels, not {width}x{height}; use `preprocess`")
        x = self.trunk(video_BCTHW)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits(x).mean(dim=(2, 3, 4))


def preprocess(frames_THWC: Frames) -> Tensor:
    """uint8 RGB frames [T, H, W, 3] to the network's float32 input [3, T, 224, 224], as its entry in the
    catalogue says."""
    resized = []
    for part_THWC in np.array_split(frames_THWC, -(-len(frames_THWC) // _FRAMES_AT_ONCE)):
        x_TCHW = torch.tensor(part_THWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        size = (_SIDE, _SIDE)
        resized.append(F.interpolate(x_TCHW, size=size, mode="bilinear", align_corners=False, antialias=False))
    return torch.cat(resized).transpose(0, 1)


def logits(model: nn.Module, videos: Sequence[Frames]) -> NDArray[np.float64]:
    """Logits [B, 400] of videos of one length, each uint8 RGB [T, H, W, 3]."""
    video_BCTHW = torch.stack([preprocess(video) for video in videos])
    video_BCTHW = video_BCTHW.to(next(model.parameters()).device, memory_format=torch.channels_last_3d)
    return model(video_BCTHW).double().cpu().numpy()


def load_i3d(folder: str | None = None, device: str | torch.device = "cpu") -> I3D:
    """The network with the published weights, in evaluation mode, float32.

    Args:
        folder: folder that holds the weight file; default: the cache (see `weights.locate`).
        device: torch device.

    Raises:
        WeightsUnavailable: see `weights.locate`.
    """
    arrays = weights.load(I3D_WEIGHTS, folder)
    with torch.device("meta"):
        model = I3D()
    model.to_empty(device="cpu")
    model.load_state_dict(_state(arrays["params"], arrays["batch_stats"]))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d).to(device)


def _state(params: dict[str, Any], statistics: dict[str, Any]) -> dict[str, Tensor]:
    """The checkpoint's arrays under our parameter names, with batch normalisation folded in, in float64."""
    state = {
        "logits.weight": _kernel(params["Logits/Conv3d_0c_1x1"]["Conv_0"]["kernel"]),
        "logits.bias": torch.from_numpy(params["Logits/Conv3d_0c_1x1"]["Conv_0"]["bias"]),
    }
    for name, unit in _units().items():
        values, moments = params, statistics
        for part in name:
            values, moments = values[part], moments[part]
        mean, variance = (moments["BatchNorm_0"][key].astype(np.float64).reshape(-1) for key in ("mean", "var"))
        scale = 1 / np.sqrt(variance + _EPSILON)
        shift = values["BatchNorm_0"]["bias"].reshape(-1) - mean * scale
        state[f"{unit}.conv.weight"] = _kernel(values["Conv_0"]["kernel"] * scale)
        state[f"{unit}.conv.bias"] = torch.from_numpy(shift.astype(np.float32))
    return state


def _kernel(kernel_THWIO: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(kernel_THWIO.astype(np.float32).transpose(4, 3, 0, 1, 2)))


def _units() -> dict[tuple[str, ...], str]:
    """Path of each convolution unit in the checkpoint to its name here."""
    units: dict[tuple[str, ...], str] = {
        (name,): f"trunk.{name}" for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
    }
    for block in _CHANNELS:
        units |= {
            (block, "Branch_0/Conv3d_0a_1x1"): f"trunk.{block}.branch_0",
            (block, "Branch_1/Conv3d_0a_1x1"): f"trunk.{block}.branch_1.0",
            (block, "Branch_1/Conv3d_0b_3x3"): f"trunk.{block}.branch_1.1",
            (block, "Branch_2/Conv3d_0a_1x1"): f"trunk.{block}.branch_2.0",
            (block, "Branch_2/Conv3d_0b_3x3"): f"trunk.{block}.branch_2.1",
            (block, "Branch_3/Conv3d_0b_1x1"): f"trunk.{block}.branch_3.1",
        }
    return units
