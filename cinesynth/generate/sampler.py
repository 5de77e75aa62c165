"""First frame, prompt and adapters to frames: the denoising loop and the decode.

The same inputs and seed give what `WanImageToVideoPipeline` gives; the loop is ours so that it can report
progress, be cancelled between steps and (later) be split over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel
from PIL import Image

import cinesynth
from cinesynth.config import SamplerSettings
from cinesynth.errors import AdapterError, ModelError
from cinesynth.pictures import Frames, crop_to
from cinesynth.wan.adapter import load_adapters
from cinesynth.wan.card import Parent
from cinesynth.wan.condition import ConditionEncoder, latent_statistics, to_frames
from cinesynth.wan.family import ModelSpec
from cinesynth.wan.folder import base_hash, model_hash, model_spec
from cinesynth.wan.inputs import model_input, pad_prompt
from cinesynth.wan.load import load_scheduler, load_transformer, load_vae

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class GeneratedVideo:
    """A video and what made it."""

    frames: Frames
    """uint8 RGB [T, H, W, 3]"""
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Conditions:
    """What a video is conditioned on, in the shapes of the model's encoders (no batch dimension)."""

    condition_latents: torch.Tensor
    """[C, F, h, w]: normalised latents of [frame 0, zeros...]"""
    prompt_embeds: torch.Tensor
    """[L, D], true length"""
    image_embeds: torch.Tensor | None = None
    """[N, D]; needed where the family has an image encoder"""
    negative_embeds: torch.Tensor | None = None
    """[L, D]; needed when guidance_scale is above 1"""

    @classmethod
    def of_row(cls, row: Mapping[str, Any], negative_embeds: torch.Tensor | None = None) -> Conditions:
        """Those of a dataset's row, which has the tensors of its family."""
        given = {name: torch.as_tensor(row[name]).float() for name in cls._IN_ROW if name in row}
        return cls(**given, negative_embeds=negative_embeds)

    _IN_ROW: ClassVar = ("condition_latents", "prompt_embeds", "image_embeds")


class Generator:
    """A loaded model that makes videos, one at a time.

    Args:
        model: 'nano', a folder or a hub id.
        device: torch device. The transformer runs in bf16 on CUDA, fp32 elsewhere; the VAE in fp32.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        self.model = model
        self.device = device
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.spec = model_spec(model)
        self.fps = self.spec.family.fps
        self.experts = {name: load_transformer(model, self.dtype, device, name) for name in self.spec.family.experts}
        self.vae = load_vae(model, device)
        self._hashes = {"model": model_hash(model), "base": base_hash(model)}
        self._adapters: list[Parent] = []
        self._encoder: ConditionEncoder | None = None

    @property
    def encoder(self) -> ConditionEncoder:
        """The condition encoders; loaded on first use, as generation from a dataset does not need them."""
        if self._encoder is None:
            self._encoder = ConditionEncoder(self.model, self.device, vae=self.vae)
        return self._encoder

    def load_adapters(self, adapters: list[tuple[Path, float]]) -> None:
        """Replace what is loaded by these (folder, scale) pairs, in order; [] is the base model.

        Raises AdapterError as `cinesynth.wan.adapter.load_adapters` does, and for a model of two experts. The adapters
        that were loaded then stay.
        """
        if len(self.experts) > 1:
            if adapters:
                raise AdapterError(f"model {self.model!r} has two experts; adapters fit models with one transformer")
            return
        (transformer,) = self.experts.values()
        self._adapters = load_adapters(transformer, adapters, self._hashes["base"])

    def generate(
        self,
        image: Image.Image,
        prompt: str,
        num_frames: int,
        height: int,
        width: int,
        sampler: SamplerSettings,
        on_step: OnStep | None = None,
    ) -> GeneratedVideo:
        """A video that starts at `image`, centre-cropped and resized to `height` x `width`.

        Args:
            image: any size.
            prompt: cut at the family's number of text tokens, as the model's own pipeline does.
            num_frames: one that the family has; Wan's are 4n+1.
            height, width: pixels, multiples of the family's step; Wan2.1's is 16.
            sampler: steps, guidance, shift, seed.
            on_step: called with (step, total) after each denoising step; raise in it to cancel.
        """
        frame = crop_to(image, height, width)
        video = self.generate_from(self.conditions(frame, prompt, num_frames, sampler), sampler, on_step)
        video.provenance["prompt"] = prompt
        return video

    def conditions(self, frame_HWC: Frames, prompt: str, num_frames: int, sampler: SamplerSettings) -> Conditions:
        """A first frame, in the video's size, and the prompts, encoded."""
        guided = sampler.guidance_scale > 1
        return Conditions(
            condition_latents=self.encoder.condition_latents(frame_HWC, num_frames),
            prompt_embeds=self.encoder.prompt_embeds(prompt),
            image_embeds=self.encoder.image_embeds(frame_HWC) if self.spec.family.image_encoder else None,
            negative_embeds=self.encoder.prompt_embeds(sampler.negative_prompt) if guided else None,
        )

    def generate_from(
        self, conditions: Conditions, sampler: SamplerSettings, on_step: OnStep | None = None
    ) -> GeneratedVideo:
        """A video from encoded conditions; shape and length are those of the condition latents.

        Raises ModelError for conditions that another model's encoders made.
        """
        check_conditions(self.spec, conditions)
        scheduler = load_scheduler(self.model, sampler.flow_shift)
        latents = denoise(self.spec, self.experts, scheduler, conditions, sampler, self.device, self.dtype, on_step)
        provenance = {
            "generator": f"cinesynth {cinesynth.__version__}",
            "model": self.model,
            "model_sha256": self._hashes["model"],
            "adapters": [a.model_dump() for a in self._adapters],
            "sampler": {**sampler.model_dump(), "scheduler": type(scheduler).__name__},
        }
        return GeneratedVideo(decode(self.spec, self.vae, latents), provenance)


def check_conditions(spec: ModelSpec, conditions: Conditions) -> None:
    """Raise ModelError where a condition has not the shape that the model takes."""
    video = spec.family.video_shape(*conditions.condition_latents.shape[1:])
    for name, wanted in spec.tensor_shapes(*video).items():
        if name == "latents":
            continue
        value = getattr(conditions, name)
        found = () if value is None else tuple(value.shape)
        fits = len(found) == len(wanted) and all(w in (None, n) for n, w in zip(found, wanted, strict=True))
        if not fits:
            raise ModelError(f"model {spec.model!r}: {name} has shape {found}, not {wanted}; encode it with this model")


def initial_noise(shape_CFhw: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal [1, C, F, h, w] drawn on the CPU, so that a seed means the same on every device."""
    return torch.randn((1, *shape_CFhw), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()  # not in inference mode, whose tensors a sharded model in training could not use again
def denoise(
    spec: ModelSpec,
    experts: Mapping[str, WanTransformer3DModel],
    scheduler: SchedulerMixin,
    conditions: Conditions,
    sampler: SamplerSettings,
    device: str,
    dtype: torch.dtype,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Integrate from noise to latents: fp32 [1, C, F, h, w]; each step is the expert's whose timesteps it lies in.

    Classifier-free guidance is v_uncond + g (v_cond - v_uncond), skipped for g of 1 or less.
    """
    family = spec.family
    condition = conditions.condition_latents[None].to(device, torch.float32)
    image_embeds = conditions.image_embeds if family.image_encoder else None
    image_embeds = None if image_embeds is None else image_embeds[None].to(device, dtype)
    prompt = pad_prompt(family, conditions.prompt_embeds)[None].to(device, dtype)
    negative = conditions.negative_embeds
    guided = sampler.guidance_scale > 1
    if guided and negative is None:
        raise ValueError(f"guidance_scale {sampler.guidance_scale} needs the negative prompt's embedding")
    unconditional = pad_prompt(family, negative)[None].to(device, dtype) if guided and negative is not None else None
    latents = initial_noise(tuple(condition.shape[1:]), sampler.seed).to(device)
    scheduler.set_timesteps(sampler.steps, device=device)

    def velocity(text: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return experts[spec.expert_at(float(timestep))](
            hidden_states=model_input(family, latents, condition).to(dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=text,
            encoder_hidden_states_image=image_embeds,
            return_dict=False,
        )[0]

    for step, timestep in enumerate(scheduler.timesteps):
        prediction = velocity(prompt, timestep)
        if unconditional is not None:
            without = velocity(unconditional, timestep)
            prediction = without + sampler.guidance_scale * (prediction - without)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(step + 1, len(scheduler.timesteps))
    return latents


@torch.inference_mode()
def decode(spec: ModelSpec, vae: AutoencoderKLWan, latents_BCFhw: torch.Tensor) -> Frames:
    """Latents of one video to uint8 RGB [T, H, W, 3]: T is stride x (F - 1) + 1."""
    mean, std = latent_statistics(spec, vae.device)
    video_BCTHW = vae.decode(latents_BCFhw.to(vae.device, vae.dtype) * std + mean, return_dict=False)[0]
    return to_frames(video_BCTHW[0].permute(1, 2, 3, 0))
