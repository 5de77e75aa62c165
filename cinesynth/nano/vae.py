"""Training of the nano VAE: its linear skeleton first, then the whole network on longer and longer clips.

Nothing is trained on its latents before it is better than a PCA of the same latent budget (`pca_floor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from numpy.typing import NDArray
from torch import nn

from cinesynth.nano.fit import Curve, Schedule, fit
from cinesynth.nano.skeleton import Skeleton, copy_into
from cinesynth.processor import fast_autocast
from cinesynth.wan.condition import to_unit_range
from cinesynth.wan.family import WAN21_I2V

KL_WEIGHT = 1e-3
COLOUR_WEIGHT = 0.5
PERCEPTUAL_WEIGHT = 0.1
FIRST_WEIGHT = 0.1
"""Weight of the first frame's error; a later frame's is 1. The first has latents of its own and is the easiest."""

Pixels = NDArray[np.uint8]
"""Windows [N, T, H, W, 3]."""


@dataclass(frozen=True)
class Phase:
    """One part of the whole network's training, on clips of one length and size."""

    name: str
    frames: int
    batch: int
    crop: tuple[int, int]
    schedule: Schedule


def to_video(windows: Pixels) -> torch.Tensor:
    """[N, T, H, W, 3] uint8 to [N, 3, T, H, W] in [-1, 1]."""
    return to_unit_range(windows).permute(0, 4, 1, 2, 3)


def train_skeleton(
    vae: AutoencoderKLWan, train: Pixels, held_out: Pixels, schedule: Schedule, seed: int, folder: Path
) -> Curve:
    """Train the linear skeleton and copy it into `vae`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        skeleton = Skeleton(vae)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = patchify(to_video(_clips(train, 5, 8, None, seed, step)), 2)
        chunk, first = x[:, :, 1:], x[:, :, :1]
        error = F.mse_loss(skeleton.decode(skeleton.encode(chunk), 4), chunk)
        return error + FIRST_WEIGHT * F.mse_loss(skeleton.decode(skeleton.encode(first), 1), first), {}

    curve = fit("skeleton", skeleton, loss, schedule, folder, lambda: reconstruction(skeleton, held_out))
    skeleton.balance(patchify(to_video(train[:: max(1, len(train) // 256), 1:5]), 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy_into(vae, skeleton, to_video(train[:4]))
    return curve


def train_phase(
    vae: AutoencoderKLWan, train: Pixels, held_out: Pixels, phase: Phase, seed: int, folder: Path, perceptual: nn.Module
) -> Curve:
    """Train the whole network by reconstruction, colour and perceptual terms, and a KL that keeps variances near one.

    `perceptual` is LPIPS, which takes two batches of frames in [-1, 1].
    """
    vae.requires_grad_(True).train()

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = to_video(_clips(train, phase.frames, phase.batch, phase.crop, seed, step))
        draws = torch.Generator().manual_seed(seed * 1_000_003 + step)
        with fast_autocast():
            posterior = vae.encode(x).latent_dist
            z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draws)
            y = vae.decode(z).sample
        y = y.float()
        mean, variance, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + variance - 1 - logvar).mean()
        error = y - x
        weights = torch.ones(phase.frames)
        weights[0] = FIRST_WEIGHT

        def mean_of(part_BCTHW: torch.Tensor) -> torch.Tensor:
            return (part_BCTHW.mean((0, 1, 3, 4)) * weights).sum() / weights.sum()

        # An error that remains in blurred pictures is one of colour.
        colour = mean_of(F.avg_pool3d(error, (1, 8, 8)).abs())
        rows, place = torch.arange(len(x)), torch.randint(phase.frames, (len(x),), generator=draws)
        distance = perceptual(y[rows, :, place], x[rows, :, place]).mean()  # of one frame a clip
        total = mean_of(error.abs()) + 5 * mean_of(error.square()) + COLOUR_WEIGHT * colour
        figures = {"kl": kl.item(), "std": mean.std().item(), "lpips": distance.item()}
        return total + PERCEPTUAL_WEIGHT * distance + KL_WEIGHT * kl, figures

    curve = fit(phase.name, vae, loss, phase.schedule, folder, lambda: reconstruction(VaeModel(vae), held_out))
    vae.requires_grad_(False).eval()
    return curve


class VaeModel(nn.Module):
    """The VAE as a function of videos: encode to the posterior mean, decode."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(self.vae.encode(video_BCTHW).latent_dist.mode()).sample


@torch.no_grad()
def reconstruction(model: nn.Module, windows: Pixels) -> dict[str, float]:
    """PSNR in dB, mean over windows: of a whole window, of its first and of its last frame."""
    rows = []
    for window in windows:
        x = to_video(window[None])
        rows.append(psnr_of_frames(model(x).clamp(-1, 1), x))
    table = np.array(rows).mean(0)
    return {"psnr": float(table[0]), "psnr_first": float(table[1]), "psnr_last": float(table[2])}


def psnr_of_frames(y_BCTHW: torch.Tensor, x_BCTHW: torch.Tensor) -> tuple[float, float, float]:
    """PSNR of one video in [-1, 1]: whole, first frame, last frame; capped at 60 dB."""
    error = ((y_BCTHW - x_BCTHW) / 2).square().mean((0, 1, 3, 4)).double().clamp_min(1e-6)
    whole, first, last = (-10 * e.log10().item() for e in (error.mean(), error[0], error[-1]))
    return whole, first, last


def pca_floor(train: Pixels, held_out: Pixels) -> dict[str, float]:
    """PSNR of a linear PCA with the same budget: a latent's pixels (8x8 of 4 frames, or of one) to its numbers."""
    rows = []
    bases = [_principal(_blocks(train[:, :1])), _principal(_blocks(train[:, 1:]))]
    for window in held_out:
        errors = []
        for part, (mean, axes) in zip((window[None, :1], window[None, 1:]), bases, strict=True):
            centred = _blocks(part) - mean
            errors.append(centred - centred @ axes @ axes.T)
        total = sum(float((e**2).sum()) for e in errors) / sum(e.size for e in errors)
        rows.append((total, float((errors[0] ** 2).mean())))
    psnr, first = (-10 * np.log10(np.maximum(np.array(rows), 1e-6))).mean(0)
    return {"psnr": float(psnr), "psnr_first": float(first)}


def channel_statistics(vae: AutoencoderKLWan, windows: Pixels) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) of each latent channel over windows, for the VAE's configuration."""
    with torch.no_grad():
        z = torch.cat([vae.encode(to_video(w[None])).latent_dist.mode() for w in windows])
    rows = z.transpose(0, 1).flatten(1)
    return [round(float(v), 6) for v in rows.mean(1)], [round(float(v), 6) for v in rows.std(1).clamp_min(1e-4)]


def _clips(train: Pixels, frames: int, batch: int, crop: tuple[int, int] | None, seed: int, step: int) -> Pixels:
    """Clips of random windows, starts and places; small crops hold more different windows in a batch."""
    rng = np.random.default_rng([seed, step])
    height, width = crop or train.shape[2:4]
    clips: list[Any] = []
    for _ in range(batch):
        window, start = rng.integers(len(train)), rng.integers(train.shape[1] - frames + 1)
        top, left = (8 * rng.integers(spare // 8 + 1) for spare in (train.shape[2] - height, train.shape[3] - width))
        clip = train[window, start : start + frames, top : top + height, left : left + width]
        clips.append(clip[:, :, ::-1] if rng.random() < 0.5 else clip)
    return np.stack(clips)


def _blocks(windows: Pixels) -> NDArray[Any]:
    """[N, T, H, W, 3] to rows of the pixels of one latent: 8x8 of one frame (T is 1) or of four."""
    n, frames, height, width, _ = windows.shape
    depth, side = min(frames, WAN21_I2V.temporal_stride), WAN21_I2V.spatial_stride
    x = windows.astype(np.float32) / 255
    x = x.reshape(n, frames // depth, depth, height // side, side, width // side, side, 3)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, depth * side * side * 3)


def _principal(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(mean, the main axes as columns: as many as a latent has channels)."""
    mean = rows.mean(0)
    _, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, vectors[:, -WAN21_I2V.latent_channels :]
