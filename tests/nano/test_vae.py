"""The VAE's start: a linear skeleton, its balance, and the whole network that computes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

from cinesynth.nano.architecture import nano_parts
from cinesynth.nano.domain import held_out_windows
from cinesynth.nano.skeleton import LATENTS, Skeleton, copy_into
from cinesynth.nano.vae import VaeModel, channel_statistics, pca_floor, reconstruction, to_video


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.stack([window.render() for window in held_out_windows(6)])


@pytest.fixture
def skeleton() -> Skeleton:
    torch.manual_seed(0)
    return Skeleton(nano_parts().vae)


def test_balancing_changes_the_latents_and_not_the_pictures(skeleton: Skeleton, windows: np.ndarray) -> None:
    video, chunks = to_video(windows[:2, :9]), patchify(to_video(windows[:, 1:5]), 2)
    before = skeleton(video)
    skeleton.balance(chunks)
    assert torch.allclose(skeleton(video), before, atol=1e-4)
    deviations = skeleton.encode(chunks).transpose(0, 1).flatten(1).std(1)
    assert torch.allclose(deviations, torch.ones(LATENTS), rtol=1e-3)
    metric = skeleton._metric()
    assert torch.allclose(metric / metric[0, 0], torch.eye(LATENTS).double(), atol=1e-3)


def test_the_whole_network_starts_as_the_skeleton(skeleton: Skeleton, windows: np.ndarray) -> None:
    vae, video = nano_parts().vae, to_video(windows[:2, :9])
    skeleton.balance(patchify(to_video(windows[:, 1:5]), 2))
    copy_into(vae, skeleton, video)
    with torch.no_grad():
        ours, theirs = VaeModel(vae)(video), skeleton(video).clamp(-1, 1)
        latents = vae.encode(video).latent_dist.mode()
        first = skeleton.encode(patchify(video[:, :, :1], 2))
    assert (ours - theirs).square().mean() < 0.01 * theirs.var()
    assert (latents[:, :, 0] - first).square().mean() < 0.01 * first.var()


def test_the_floor_is_that_of_an_exact_pca(windows: np.ndarray) -> None:
    rank_two = np.einsum("nt,c->ntc", np.linspace(0, 255, 6 * 33).reshape(6, 33), [1.0, 0.5, 0.25])
    flat = np.broadcast_to(rank_two[:, :, None, None], windows.shape).astype(np.uint8)
    assert pca_floor(flat, flat)["psnr"] > 50  # up to the rounding to bytes
    noise = np.random.default_rng(0).integers(0, 256, windows.shape, dtype=np.uint8)
    # Of 768 equal variances 16 are kept: the error is 752/768 of the variance of uniform bytes.
    assert pca_floor(noise, noise)["psnr"] == pytest.approx(-10 * np.log10(752 / 768 / 12), abs=0.15)


def test_reconstruction_and_statistics_are_of_the_frames_they_name(windows: np.ndarray) -> None:
    class Darker(torch.nn.Module):
        def forward(self, video: torch.Tensor) -> torch.Tensor:
            out = video.clone()
            out[:, :, -1] -= 0.02
            return out

    grey = np.full_like(windows[:2], 128)
    found = reconstruction(Darker(), grey)
    assert found["psnr_first"] == pytest.approx(60)
    assert found["psnr_last"] == pytest.approx(40, abs=0.01)
    vae = nano_parts().vae
    mean, std = channel_statistics(vae, windows[:2, :9])
    with torch.no_grad():
        latents = vae.encode(to_video(windows[:2, :9])).latent_dist.mode().transpose(0, 1).flatten(1)
    assert mean == pytest.approx(latents.mean(1).tolist(), abs=1e-4)
    assert std == pytest.approx(latents.std(1).tolist(), abs=1e-4)
