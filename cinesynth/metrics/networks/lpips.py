"""LPIPS v0.1 (Zhang et al., arXiv 1801.03924): perceptual distance of two images, lower is closer.

Network code and linear heads are those of the `lpips` package; the trunk (AlexNet or VGG-16, trained on ImageNet),
which that package would download from a hub, comes from our checked weights.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lpips
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cinesynth.errors import MediaError, WeightsUnavailable
from cinesynth.metrics import weights
from cinesynth.metrics.networks import LPIPS_MIN_SIDE
from cinesynth.pictures import Frames

Net = Literal["alex", "vgg"]
_PIXELS_AT_ONCE = 1 << 20  # VGG's first activations take 256 bytes a pixel
_TRUNKS = {"alex": "AlexNet_0", "vgg": "VGG16_0"}


def load_lpips(net: Net = "alex", folder: str | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """The LPIPS network, in evaluation mode, float32: two batches [B, 3, H, W] in [-1, 1] to distances [B, 1, 1, 1].

    Args:
        net: the trunk.
        folder: folder that holds the weight file; default: the cache (see `weights.locate`).
        device: torch device.

    Raises:
        WeightsUnavailable: see `weights.locate`.
    """
    arrays = weights.load(f"lpips-{net}", folder)[_TRUNKS[net]]
    with warnings.catch_warnings(), _NoInitialisation():
        warnings.simplefilter("ignore")  # `lpips` calls torchvision by its older argument names
        model = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    convolutions = [m for m in model.net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for i, convolution in enumerate(convolutions):
            convolution.weight.copy_(torch.from_numpy(arrays[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1).copy()))
            assert convolution.bias is not None
            convolution.bias.copy_(torch.from_numpy(arrays[f"Conv_{i}"]["bias"].reshape(-1).copy()))
    return model.eval().requires_grad_(False).to(device)


def load_published(file: str, net: Net = "alex", folder: str | None = None) -> nn.Module:
    """LPIPS with the weights of a published state dict, as its training script saves it: the heads, or the heads and
    the trunk, which then replaces ours.

    Args:
        file: of `torch.save`; read with `weights_only`.
        net: the trunk that the heads are for.
        folder: folder that holds the weight file of our trunk; default: the cache.

    Raises WeightsUnavailable for what is no such state dict.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as e:
        raise WeightsUnavailable(f"{file} cannot be read as a state dict: {' '.join(str(e).split())[:200]}") from e
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsUnavailable(f"{file} holds no state dict of tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    model = load_lpips(net, folder)
    mine = model.state_dict()
    heads = {name for name in mine if re.fullmatch(r"lin\d\.model\.1\.weight", name)}
    trunk = {name for name in mine if name.startswith("net.")}
    missing = (heads | (trunk if trunk & state.keys() else set())) - state.keys()
    foreign = state.keys() - mine.keys()
    unlike = {name for name in state.keys() & mine.keys() if state[name].shape != mine[name].shape}
    for what, names in (("lacks", missing), ("holds the unknown", foreign), ("has another shape of", unlike)):
        if names:
            raise WeightsUnavailable(
                f"{file} is no LPIPS of {net}: it {what} {len(names)} tensors, such as {sorted(names)[0]!r}"
            )
    # The package keeps each head under two names, and a file may have one of them only.
    state |= {f"lins.{name[3]}{name[4:]}": state[name] for name in heads}
    model.load_state_dict(mine | state)
    return model


def frame_distances(model: nn.Module, a_THWC: Frames, b_THWC: Frames) -> NDArray[np.float64]:
    """LPIPS of each pair of frames.

    Args:
        model: from `load_lpips`.
        a_THWC: uint8 RGB frames [T, H, W, 3], sides of at least 32.
        b_THWC: frames of the same shape.

    Returns:
        Distances [T], float64.

    Raises:
        MediaError: unequal shapes, or sides below 32.
    """
    if a_THWC.shape != b_THWC.shape:
        raise MediaError(f"LPIPS compares frames of one shape, not {a_THWC.shape} and {b_THWC.shape}")
    if min(a_THWC.shape[1:3]) < LPIPS_MIN_SIDE:
        raise MediaError(f"LPIPS needs sides of at least {LPIPS_MIN_SIDE}, not {a_THWC.shape[2]}x{a_THWC.shape[1]}")
    device = next(model.parameters()).device
    chunk = max(1, _PIXELS_AT_ONCE // (a_THWC.shape[1] * a_THWC.shape[2]))
    values = []
    with torch.inference_mode():
        for start in range(0, len(a_THWC), chunk):
            a, b = (_to_input(x[start : start + chunk]).to(device) for x in (a_THWC, b_THWC))
            values.append(model(a, b).flatten().double().cpu())
    return torch.cat(values).numpy()


def pair_distances(model: nn.Module, pairs: Sequence[tuple[Frames, ...]]) -> NDArray[np.float64]:
    """Distances [B, T] of pairs of videos of one length; the sizes may differ from pair to pair."""
    if len({real.shape for real, _ in pairs}) > 1:
        return np.stack([frame_distances(model, real, fake) for real, fake in pairs])
    reals, fakes = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    return frame_distances(model, reals, fakes).reshape(len(pairs), -1)


def _to_input(frames_THWC: Frames) -> Tensor:
    return torch.tensor(frames_THWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class _NoInitialisation(TorchFunctionMode):
    """Leaves parameters unset that are loaded right after: filling VGG's 138 million would take seconds."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
