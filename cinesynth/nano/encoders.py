"""Training of the nano text and image encoders: captions are contrasted with first frames and with videos.

A small network encodes the videos and is thrown away afterwards. Without it, words of motion would mean nothing.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModel, PreTrainedTokenizerFast, UMT5EncoderModel

from cinesynth.nano.fit import Curve, Schedule, fit
from cinesynth.nano.vae import Pixels

BATCH = 64
_WIDTH = 64
_FRAMES = (0, 8, 16, 24, 32)


class Contrast(nn.Module):
    """Both encoders, and what is thrown away after training: a video network, projections and temperatures."""

    def __init__(self, text: UMT5EncoderModel, image: CLIPVisionModel) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.video = nn.Sequential(
            *(nn.Conv2d(len(_FRAMES) + 3, 24, 5, stride=2, padding=2), nn.GELU()),
            *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.GELU()),
            *(nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.GELU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.GELU()),
            *(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()),
        )
        self.from_text = nn.Linear(text.config.d_model, 2 * _WIDTH, bias=False)
        self.from_image = nn.Linear(image.config.hidden_size, _WIDTH, bias=False)
        self.from_video = nn.Linear(384, _WIDTH, bias=False)
        self.temperature = nn.Parameter(torch.full((2,), math.log(10.0)))

    def forward(
        self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor, first_B3HW: torch.Tensor, stack_BCHW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, B] of captions against first frames, and against videos."""
        states = self.text(tokens_BL, mask_BL).last_hidden_state
        pooled = (states * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdim=True)
        for_image, for_video = F.normalize(self.from_text(pooled).view(-1, 2, _WIDTH), dim=-1).unbind(1)
        # The transformer is given the states of the block before the last.
        patches = self.image(pixel_values=first_B3HW, output_hidden_states=True).hidden_states[-2]
        image = F.normalize(self.from_image(patches.mean(1)), dim=-1)
        video = F.normalize(self.from_video(self.video(stack_BCHW)), dim=-1)
        scale = self.temperature.exp().clamp(max=100)
        return scale[0] * for_image @ image.T, scale[1] * for_video @ video.T


def train_encoders(
    text: UMT5EncoderModel,
    image: CLIPVisionModel,
    tokenizer: PreTrainedTokenizerFast,
    processor: CLIPImageProcessor,
    train: tuple[Pixels, list[str]],
    held_out: tuple[Pixels, list[str]],
    schedule: Schedule,
    seed: int,
    folder: Path,
) -> Curve:
    """Train both encoders in place on (windows, captions)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Contrast(text.train(), image.train())
    encoded = {id(captions): _tokens(tokenizer, captions) for _, captions in (train, held_out)}

    def logits(data: tuple[Pixels, list[str]], rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        windows, captions = data
        tokens, mask = (part[rows] for part in encoded[id(captions)])
        length = int(mask.sum(1).max())
        frames = torch.tensor(np.stack([windows[row][list(_FRAMES)] for row in rows])).float().div_(255)
        return model(tokens[:, :length], mask[:, :length], _first(frames, processor), _stack(frames))

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        size = min(BATCH, len(train[1]))
        rows = np.random.default_rng([seed, step]).choice(len(train[1]), size, replace=False).tolist()
        both = [_info_nce(part) for part in logits(train, rows)]
        return both[0] + both[1], {"image": both[0].item(), "video": both[1].item()}

    @torch.no_grad()
    def validate() -> dict[str, float]:
        size = min(BATCH, len(held_out[1]))
        target = torch.arange(size)
        found = [(part.argmax(0) == target).float().mean().item() for part in logits(held_out, list(range(size)))]
        return {"held_out_image_accuracy": found[0], "held_out_video_accuracy": found[1]}

    curve = fit("encoders", model, loss, schedule, folder, validate)
    text.eval(), image.eval()
    return curve


def _tokens(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    found = tokenizer(captions, padding=True, return_tensors="pt")
    return found.input_ids, found.attention_mask


def _first(frames_BTHWC: torch.Tensor, processor: CLIPImageProcessor) -> torch.Tensor:
    """The first frames as the processor would give them. They have its height already, so they are only cropped."""
    side = processor.crop_size["height"]
    left = (frames_BTHWC.shape[3] - side) // 2
    crop = frames_BTHWC[:, 0, :, left : left + side]
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return ((crop - mean) / std).permute(0, 3, 1, 2)


def _stack(frames_BTHWC: torch.Tensor) -> torch.Tensor:
    """Grey frames at half size as channels, and the first frame's colours: [B, 8, H/2, W/2]."""
    small = F.avg_pool2d(frames_BTHWC.permute(0, 1, 4, 2, 3).flatten(0, 1), 2).unflatten(0, frames_BTHWC.shape[:2])
    return torch.cat([small.mean(2), small[:, 0]], dim=1) - 0.5


def _info_nce(logits_BB: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(logits_BB))
    return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2
