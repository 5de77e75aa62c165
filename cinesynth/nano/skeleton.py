"""The linear skeleton of the nano VAE: the same network without norms, activations and residuals.

A linear autoencoder reaches a PCA of the latent budget within minutes. The whole network, trained from scratch, is
still 15 dB below it then. So the skeleton is trained first and copied into the whole network, where it computes the
same function; then the whole network is trained.

Shape letters: B batch, T frames (1: the first frame of a video; 4: a later chunk), C channels, h/w sides.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock, patchify, unpatchify
from scipy.linalg import hadamard
from torch import nn

from cinesynth.wan.family import WAN21_I2V

LATENTS = WAN21_I2V.latent_channels
_LARGE = 10.0  # the constant channel before an output norm, in units of the features' norm


class Skeleton(nn.Module):
    """Strided convolutions in space and 1x1 convolutions over pairs of frames; each chunk of four frames is apart."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        pixels = 3 * vae.config.patch_size**2
        first, second = vae.encoder.down_blocks[1].dim, vae.encoder.down_blocks[3].dim
        up_0, up_1 = (block.upsamplers[0].resample[1] for block in vae.decoder.up_blocks[:2])
        # An output head spends two channels on a feature (its halves of both signs) and one on a constant.
        encoded, decoded = (second - 1) // 2, (up_1.out_channels - 1) // 2
        self.down_0 = nn.Conv2d(pixels, first, 3, stride=2)
        self.pair_0 = nn.Conv2d(2 * first, first, 1)
        self.down_1 = nn.Conv2d(first, encoded, 3, stride=2)
        self.pair_1 = nn.Conv2d(2 * encoded, encoded, 1)
        self.to_latents = nn.Conv2d(encoded, LATENTS, 3, padding=1)
        self.from_latents = nn.Conv2d(LATENTS, up_0.in_channels, 3, padding=1)
        self.split_0 = nn.Conv2d(up_0.in_channels, 2 * up_0.in_channels, 1)
        self.up_0 = nn.Conv2d(up_0.in_channels, up_0.out_channels, 3, padding=1)
        self.widen = nn.Conv2d(up_0.out_channels, up_1.in_channels, 1)
        self.split_1 = nn.Conv2d(up_1.in_channels, 2 * up_1.in_channels, 1)
        self.up_1 = nn.Conv2d(up_1.in_channels, decoded, 3, padding=1)
        self.to_pixels = nn.Conv2d(decoded, pixels, 3, padding=1)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d)
            nn.init.orthogonal_(layer.weight.view(layer.weight.shape[0], -1))
            nn.init.zeros_(_bias(layer))

    def encoder_features(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """The input of the encoder's head: patchified pixels [B, C, T, h, w] to [B, C', h/4, w/4]."""
        batch, _, frames = x_BCTHW.shape[:3]
        y = self.down_0(F.pad(x_BCTHW.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1)))
        if frames == 4:
            y = self.pair_0(y.view(2 * batch, -1, *y.shape[2:]))
        y = self.down_1(F.pad(y, (0, 1, 0, 1)))
        return self.pair_1(y.view(batch, -1, *y.shape[2:])) if frames == 4 else y

    def encode(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Latents [B, LATENTS, h/4, w/4] of a first frame or a chunk of four."""
        return self.to_latents(self.encoder_features(x_BCTHW))

    def decoder_features(self, z_BChw: torch.Tensor, frames: int) -> torch.Tensor:
        """The input of the decoder's head: [B T, C', h, w]."""
        y = self.from_latents(z_BChw)
        if frames == 4:
            y = self.split_0(y).view(2 * len(y), -1, *y.shape[2:])
        y = self.widen(self.up_0(F.interpolate(y, scale_factor=2, mode="nearest")))
        if frames == 4:
            y = self.split_1(y).view(2 * len(y), -1, *y.shape[2:])
        return self.up_1(F.interpolate(y, scale_factor=2, mode="nearest"))

    def decode(self, z_BChw: torch.Tensor, frames: int) -> torch.Tensor:
        """Patchified pixels [B, C, frames, h, w]."""
        y = self.to_pixels(self.decoder_features(z_BChw, frames))
        return y.view(-1, frames, *y.shape[1:]).transpose(1, 2)

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """Reconstruct videos of 4n+1 frames in [-1, 1], to compare with the whole network."""
        x = patchify(video_BCTHW, 2)
        chunks = [x[:, :, :1], *x[:, :, 1:].split(4, dim=2)]
        return unpatchify(torch.cat([self.decode(self.encode(c), c.shape[2]) for c in chunks], dim=2), 2)

    @torch.no_grad()
    def balance(self, chunks_BCTHW: torch.Tensor) -> None:
        """Rotate and scale the latents, so that the same videos are reconstructed.

        Afterwards a step in latent space moves the pixels of a chunk equally far in every direction (so that an error
        in latents is an error in pixels), and every channel has variance 1 over these chunks.
        """
        z = self.encode(chunks_BCTHW).double()
        covariance = torch.cov(z.transpose(0, 1).flatten(1))
        metric_values, metric_vectors = torch.linalg.eigh(self._metric())
        root = metric_vectors @ torch.diag(metric_values.clamp_min(1e-8).sqrt()) @ metric_vectors.T
        _, axes = torch.linalg.eigh(root @ covariance @ root.T)
        # From its principal axes, each channel becomes an equal mixture of all of them.
        mixture = torch.tensor(hadamard(LATENTS)).double() / math.sqrt(LATENTS)
        turn = mixture @ axes.T @ root
        turn = turn / (turn @ covariance @ turn.T).diagonal().mean().sqrt()
        back = torch.linalg.inv(turn)
        weight, bias = self.to_latents.weight.double(), _bias(self.to_latents).double()
        self.to_latents.weight.copy_(torch.einsum("oi,ichw->ochw", turn, weight))
        _bias(self.to_latents).copy_(turn @ bias)
        weight = self.from_latents.weight.double()
        self.from_latents.weight.copy_(torch.einsum("oihw,ij->ojhw", weight, back))

    def _metric(self) -> torch.Tensor:
        """[LATENTS, LATENTS]: inner products of the pixels' responses to an impulse in each latent channel."""
        impulses = torch.zeros(LATENTS + 1, LATENTS, 7, 7)
        impulses[range(LATENTS), range(LATENTS), 3, 3] = 1
        pixels = self.decode(impulses, 4).double().flatten(1)
        responses = pixels[:-1] - pixels[-1]
        return responses @ responses.T


@torch.no_grad()
def copy_into(vae: AutoencoderKLWan, skeleton: Skeleton, video_BCTHW: torch.Tensor) -> None:
    """Make the whole network compute what the skeleton computes; norms are scaled on this video, in [-1, 1].

    Residual blocks and the attention add nothing at first, as their last convolution is zero. Convolutions over time
    have only their newest tap set. The output heads (norm and SiLU) become linear: every feature is carried with both
    signs, as silu(a) - silu(-a) = a, and beside a large constant channel the norm hardly varies.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.zeros_(_bias(module))
        if isinstance(module, WanResidualBlock):
            nn.init.kaiming_normal_(module.conv1.weight, nonlinearity="relu")
            nn.init.zeros_(module.conv2.weight)
            if isinstance(module.conv_shortcut, nn.Conv3d):
                _identity(module.conv_shortcut)
    for half in (vae.encoder, vae.decoder):
        nn.init.zeros_(half.mid_block.attentions[0].proj.weight)
    x = patchify(video_BCTHW, vae.config.patch_size)
    first, chunk = x[:, :, :1], x[:, :, 1:5]
    _copy_encoder(vae, skeleton, _channel_scale([skeleton.encoder_features(c) for c in (first, chunk)]))
    features = [skeleton.decoder_features(skeleton.encode(c), c.shape[2]) for c in (first, chunk)]
    _copy_decoder(vae, skeleton, _channel_scale(features))
    _scale_norms(vae, video_BCTHW)


def _copy_encoder(vae: AutoencoderKLWan, skeleton: Skeleton, scale: torch.Tensor) -> None:
    encoder = vae.encoder
    down_0, down_1 = encoder.down_blocks[1], encoder.down_blocks[3]
    _identity(encoder.conv_in)
    _fill(down_0.resample[1], skeleton.down_0)
    _fill_pairs(down_0.time_conv, skeleton.pair_0)
    _fill(down_1.resample[1], _both_signs(skeleton.down_1, scale))
    count = len(scale)
    _fill_pairs(down_1.time_conv, skeleton.pair_1)
    weight, bias = down_1.time_conv.weight, down_1.time_conv.bias
    weight[count : 2 * count], bias[count : 2 * count] = -weight[:count], -bias[:count]
    bias[2 * count] = down_1.resample[1].bias[2 * count]
    _head(encoder.norm_out, encoder.conv_out, skeleton.to_latents, scale)
    nn.init.constant_(encoder.conv_out.bias[LATENTS:], -7.0)  # log variance
    _identity(vae.quant_conv)


def _copy_decoder(vae: AutoencoderKLWan, skeleton: Skeleton, scale: torch.Tensor) -> None:
    decoder = vae.decoder
    up_0, up_1 = (block.upsamplers[0] for block in decoder.up_blocks[:2])
    _identity(vae.post_quant_conv)
    _fill(decoder.conv_in, skeleton.from_latents)
    _fill(up_0.time_conv, skeleton.split_0)
    _fill(up_0.resample[1], skeleton.up_0)
    _fill(decoder.up_blocks[1].resnets[0].conv_shortcut, skeleton.widen)
    _fill(up_1.time_conv, skeleton.split_1)
    _fill(up_1.resample[1], _both_signs(skeleton.up_1, scale))
    _head(decoder.norm_out, decoder.conv_out, skeleton.to_pixels, scale)


def _channel_scale(features: list[torch.Tensor]) -> torch.Tensor:
    """Root mean square of each channel."""
    rows = torch.cat([f.transpose(0, 1).flatten(1) for f in features], dim=1)
    return rows.square().mean(1).sqrt().clamp_min(1e-6)


def _both_signs(layer: nn.Conv2d, scale: torch.Tensor) -> nn.Conv2d:
    """A layer that gives the features f as channels f, -f and a large constant."""
    twice = nn.Conv2d(layer.in_channels, 2 * layer.out_channels + 1, layer.kernel_size)  # type: ignore[arg-type]
    constant = layer.weight.new_zeros(1, *layer.weight.shape[1:])
    twice.weight.copy_(torch.cat([layer.weight, -layer.weight, constant]))
    _bias(twice).copy_(torch.cat([_bias(layer), -_bias(layer), _constant(scale)[None]]))
    return twice


def _constant(scale: torch.Tensor) -> torch.Tensor:
    return _LARGE * (2 * scale.square().sum()).sqrt()


def _head(norm: nn.Module, conv: nn.Conv3d, layer: nn.Conv2d, scale: torch.Tensor) -> None:
    """Let norm, SiLU and `conv` compute `layer` on features that come as f, -f and a constant."""
    count, channels = len(scale), conv.in_channels
    assert isinstance(norm.gamma, torch.Tensor)
    gamma = norm.gamma.view(-1)
    # The norm divides by about the constant, and multiplies by the root of the channel count.
    gamma[: 2 * count] = torch.cat([1 / scale, 1 / scale]) * _constant(scale) / math.sqrt(channels)
    gamma[2 * count :] = 1 / math.sqrt(channels)
    weight = layer.weight * scale[:, None, None]
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(_bias(conv))
    conv.weight[: layer.out_channels, :count, -1] = weight
    conv.weight[: layer.out_channels, count : 2 * count, -1] = -weight
    _bias(conv)[: layer.out_channels] = _bias(layer)


def _bias(layer: nn.Conv2d | nn.Conv3d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias


def _identity(conv: nn.Conv3d) -> None:
    nn.init.zeros_(conv.weight)
    count = min(conv.in_channels, conv.out_channels)
    height, width = conv.kernel_size[1] // 2, conv.kernel_size[2] // 2
    conv.weight[range(count), range(count), -1, height, width] = 1


def _fill(conv: nn.Conv2d | nn.Conv3d, layer: nn.Conv2d) -> None:
    """Copy into the upper left of a convolution that may have more channels, and into its newest tap in time."""
    nn.init.zeros_(conv.weight)
    out, into = layer.weight.shape[:2]
    target = conv.weight[:, :, -1] if conv.weight.dim() == 5 else conv.weight
    target[:out, :into] = layer.weight
    _bias(conv)[:out] = _bias(layer)


def _fill_pairs(conv: nn.Conv3d, layer: nn.Conv2d) -> None:
    """The two newest taps of a stride-2 convolution over time take the two halves of the layer's input."""
    nn.init.zeros_(conv.weight)
    out, both = layer.weight.shape[:2]
    conv.weight[:out, : both // 2, 1] = layer.weight[:, : both // 2]
    conv.weight[:out, : both // 2, 2] = layer.weight[:, both // 2 :]
    _bias(conv)[:out] = _bias(layer)


def _scale_norms(vae: AutoencoderKLWan, video_BCTHW: torch.Tensor) -> None:
    """Scale the norms inside residual blocks so that each of their channels that varies has unit mean square."""
    sums: dict[nn.Module, torch.Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def record(norm: nn.Module, _: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        rows = out.transpose(0, 1).flatten(1)
        sums[norm] = sums.get(norm, torch.zeros(len(rows))) + rows.square().sum(1)
        counts[norm] = counts.get(norm, 0) + rows.shape[1]

    norms = [block.norm1 for block in vae.modules() if isinstance(block, WanResidualBlock)]
    handles = [norm.register_forward_hook(record) for norm in norms]
    vae.decode(vae.encode(video_BCTHW).latent_dist.mode())
    for handle in handles:
        handle.remove()
    for norm in norms:
        norm.gamma.view(-1).div_((sums[norm] / counts[norm]).sqrt().clamp_min(1e-2))
