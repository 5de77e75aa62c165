"""The conditions of the transformer, built exactly as `WanImageToVideoPipeline` builds them.

A test compares every part with the pipeline's, to 1e-5. Shape letters: B batch, T frames, H height, W width,
C channels, F latent frames, h/w latent sides, N image tokens, L text tokens, D features.
"""

from __future__ import annotations

import logging
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean
from PIL import Image

from cinesynth.errors import MediaError
from cinesynth.pictures import Frames
from cinesynth.wan.folder import encoder_hash, model_spec
from cinesynth.wan.latents import latent_statistics
from cinesynth.wan.load import load_image_encoder, load_text_encoder, load_vae

log = logging.getLogger("cinesynth.wan")


class ConditionEncoder:
    """The encoders of a model, for `prepare` and for generation; each is loaded when it is first used.

    Args:
        model: 'nano', a folder or a hub id.
        device: torch device of all of them. CLIP runs in fp32; text in bf16 on CUDA.
        vae: used in place of one that would be loaded.
        vae_dtype: of a VAE that is loaded here.
    """

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        vae: AutoencoderKLWan | None = None,
        vae_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.device, self.vae_dtype = model, device, vae_dtype
        self.spec = model_spec(model)
        if vae is not None:
            self.vae = vae
        self.prompt_embeds = lru_cache(maxsize=256)(self._prompt_embeds)

    @cached_property
    def encoder_hash(self) -> str:
        """Content hash of the encoders."""
        return encoder_hash(self.model)

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        vae = load_vae(self.model, self.device)
        return vae if vae.dtype == self.vae_dtype else vae.to(self.vae_dtype)

    def load(self) -> None:
        """Load all of them now, not when they are first used."""
        _ = self.vae, self._text_parts
        if self.spec.family.image_encoder:
            _ = self._image_parts

    @cached_property
    def _text_parts(self) -> tuple[Any, Any]:
        return load_text_encoder(self.model, self.device)

    @cached_property
    def _image_parts(self) -> tuple[Any, Any]:
        return load_image_encoder(self.model, self.device)

    def latents(self, frames_THWC: Frames) -> torch.Tensor:
        """Normalised posterior mean of a video: uint8 [T, H, W, 3] to float32 [C, F, h, w].

        Raises MediaError for a number of frames that the VAE does not code (Wan's: 4n+1).
        """
        return self._encode(to_unit_range(frames_THWC))

    def condition_latents(self, frame_HWC: Frames, num_frames: int) -> torch.Tensor:
        """Latents of the clip [frame 0, zeros...] in [-1, 1] (zeros are grey): float32 [C, F, h, w]."""
        first_THWC = to_unit_range(frame_HWC[None])
        rest = first_THWC.new_zeros(num_frames - 1, *first_THWC.shape[1:])
        return self._encode(torch.cat([first_THWC, rest]))

    @torch.no_grad()
    def window_latents(self, frames_THWC: Frames) -> tuple[torch.Tensor, torch.Tensor]:
        """`latents` and `condition_latents` of a window, made in one pass.

        On a CPU a batch of two takes a quarter of the time of two batches of one, for which PyTorch does not use
        oneDNN's convolutions.
        """
        video_THWC = to_unit_range(frames_THWC)
        condition_THWC = torch.cat([video_THWC[:1], torch.zeros_like(video_THWC[1:])])
        latents, condition = self._encode_batch(torch.stack([video_THWC, condition_THWC]))
        return latents, condition

    @torch.no_grad()
    def image_embeds(self, frame_HWC: Frames) -> torch.Tensor:
        """CLIP's penultimate block on the frame, through the pipeline's own image processor: float32 [N, D].

        Only for families with an image encoder.
        """
        processor, encoder = self._image_parts
        pixels = processor(images=Image.fromarray(frame_HWC), return_tensors="pt").to(self.device)
        return encoder(**pixels, output_hidden_states=True).hidden_states[-2][0].float().cpu()

    @torch.no_grad()
    def _prompt_embeds(self, prompt: str) -> torch.Tensor:
        """UMT5 states of the cleaned prompt at its true length: float32 [L, D], L up to the family's tokens.

        The prompt is padded before encoding, as in the pipeline, and the padding is cut off again. `inputs.pad_prompt`
        restores the model's input.
        """
        tokenizer, encoder = self._text_parts
        count, most = len(tokenizer(prompt_clean(prompt)).input_ids), self.spec.family.text_tokens
        if count > most:
            log.warning("a prompt of %d tokens is cut to the model's %d: %.60s...", count, most, prompt)
        tokens = tokenizer(
            [prompt_clean(prompt)],
            padding="max_length",
            max_length=self.spec.family.text_tokens,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states[0, : int(tokens.attention_mask.sum())].float().cpu()

    def _encode(self, video_THWC: torch.Tensor) -> torch.Tensor:
        return self._encode_batch(video_THWC[None])[0]

    @torch.no_grad()
    def _encode_batch(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        family = self.spec.family
        if (video_BTHWC.shape[1] - 1) % family.temporal_stride:
            raise MediaError(f"{video_BTHWC.shape[1]} frames: a video to encode has {family.frame_rule} frames")
        # A permuted view: channels last in memory, the faster layout of a CPU's convolutions.
        video_BCTHW = video_BTHWC.permute(0, 4, 1, 2, 3).to(self.device)
        mu = self.vae.encode(video_BCTHW.to(self.vae.dtype)).latent_dist.mode().float()
        mean, std = latent_statistics(self.spec, self.vae.device)
        return ((mu - mean) / std).cpu()


def to_unit_range(frames: Frames) -> torch.Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1], same shape."""
    return torch.tensor(np.ascontiguousarray(frames)).float() / 127.5 - 1
