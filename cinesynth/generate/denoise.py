"""Encoded conditions to frames: the denoising loop and the decode. Needs nothing beyond PyTorch and diffusers.

The same inputs and seed give what `WanImageToVideoPipeline` gives. The loop is ours so that it can report progress, be
cancelled between steps, go on from a state, and be divided over the ranks of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel

from cinesynth.errors import GenerationError, ModelError
from cinesynth.generate.course import UNWATCHED, Cancelled, Course
from cinesynth.generate.ranks import Ranks
from cinesynth.generate.state import SamplerState
from cinesynth.pictures import Frames
from cinesynth.wan.divided_vae import decode_rows
from cinesynth.wan.family import ModelSpec
from cinesynth.wan.inputs import model_input, pad_prompt
from cinesynth.wan.latents import latent_statistics, to_frames

if TYPE_CHECKING:
    from cinesynth.config import SamplerSettings


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
    start_latents: torch.Tensor | None = None
    """[C, F, h, w]: latents that are noised to `start_sigma` and denoised from there; None: noise alone"""
    start_sigma: float = 1.0

    @classmethod
    def of_row(cls, row: Mapping[str, Any], negative_embeds: torch.Tensor | None = None) -> Conditions:
        """Those of a dataset's row, which has the tensors of its family."""
        given: dict[str, Any] = {name: torch.as_tensor(row[name]).float() for name in cls._IN_ROW if name in row}
        return cls(**given, negative_embeds=negative_embeds)

    _IN_ROW: ClassVar = ("condition_latents", "prompt_embeds", "image_embeds")


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
    course: Course = UNWATCHED,
    ranks: Ranks | None = None,
    request: str = "",
) -> torch.Tensor:
    """Integrate from noise to latents: fp32 [1, C, F, h, w]; each step is the expert's whose timesteps it lies in.

    Classifier-free guidance is v_uncond + g (v_cond - v_uncond), skipped for g of 1 or less.

    Args:
        spec: of the model.
        experts: its transformers by name, divided as `ranks` says.
        scheduler: the solver.
        conditions: of the video.
        sampler: steps, guidance and seed.
        device, dtype: of the computation.
        course: what goes on beside it.
        ranks: that make the video together; default: this process alone. All of them return the same latents.
        request: hash of what the video depends on; a state belongs to it.

    Raises as `Generator.generate_from` does.
    """
    family, ranks = spec.family, ranks or Ranks()
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

    course.on_stage("denoise")
    done, total = 0, len(scheduler.timesteps)
    if conditions.start_latents is not None:
        done, latents = _begun(scheduler, conditions.start_latents[None].to(device), latents, conditions.start_sigma)
    if course.state is not None:
        done, latents = course.state.step, course.state.restore(scheduler, request, device)
    for step, timestep in enumerate(scheduler.timesteps):
        if step < done:
            continue
        if unconditional is not None:
            texts = (prompt, unconditional)
            prediction, without = ranks.guided(*(partial(velocity, text, timestep) for text in texts))
            prediction = without + sampler.guidance_scale * (prediction - without)
        else:
            prediction = velocity(prompt, timestep)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if ranks.any(course.stops()):
            raise Cancelled(f"after step {step + 1} of {total}")
        if ranks.rank == 0 and course.keep_every and (step + 1) % course.keep_every == 0 and step + 1 < total:
            course.keep(SamplerState.of(request, step + 1, latents, scheduler))
        course.on_step(step + 1, total)
    if ranks.any(not bool(latents.isfinite().all())):
        raise GenerationError(
            f"the latents are not finite after {total} steps with guidance {sampler.guidance_scale:g} and shift "
            f"{sampler.flow_shift}; change these, or leave the adapter out"
        )
    return latents


def _begun(scheduler: Any, start: torch.Tensor, noise: torch.Tensor, sigma: float) -> tuple[int, torch.Tensor]:
    """(steps that are left out, latents): those at the solver's first noise level that is at most sigma."""
    levels = scheduler.sigmas[:-1]
    done = int((levels > sigma).sum())
    if done == len(levels):  # below the lowest level nothing is to be done
        return done, start.float()
    scheduler.set_begin_index(done)
    level = levels[done].to(start.device)
    return done, (1 - level) * start + level * noise


@torch.inference_mode()
def decode(
    spec: ModelSpec,
    vae: AutoencoderKLWan,
    latents_BCFhw: torch.Tensor,
    stops: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Frames:
    """Latents of one video to uint8 RGB [T, H, W, 3]: T is stride x (F - 1) + 1.

    Args:
        spec: of the model.
        vae: whole on every rank.
        latents_BCFhw: the same on every rank.
        stops: asked before each latent frame.
        ranks: that divide the picture's rows; default: this process alone. Ranks other than 0 get no frames.

    Raises Cancelled where `stops` says so on any rank.
    """
    ranks = ranks or Ranks()

    def look(module: torch.nn.Module, inputs: Any) -> None:
        if ranks.any(stops()):
            raise Cancelled("in the decode")

    mean, std = latent_statistics(spec, vae.device)
    latents = latents_BCFhw.to(vae.device, vae.dtype) * std + mean
    hook = vae.decoder.register_forward_pre_hook(look)
    try:
        if ranks.size > 1:
            video = decode_rows(vae, latents, ranks.rank, ranks.size)
        else:
            video = vae.decode(latents, return_dict=False)[0]
    finally:
        hook.remove()
        vae.clear_cache()  # of a decode that was called off
    if video is None:
        return np.zeros((0, 0, 0, 3), np.uint8)
    return to_frames(video[0].permute(1, 2, 3, 0))
