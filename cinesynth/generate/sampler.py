"""First frame, prompt and adapters to frames: a loaded model, by itself or as one rank of a group."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import cinesynth
from cinesynth.config import SamplerSettings
from cinesynth.errors import AdapterError, CinesynthError, GenerationError
from cinesynth.generate.course import UNWATCHED, BrokenModel, Course
from cinesynth.generate.denoise import Conditions, check_conditions, decode, denoise
from cinesynth.generate.ranks import Ranks, choose_plan
from cinesynth.pictures import Frames, crop_to
from cinesynth.storage import sha256_json
from cinesynth.wan.adapter import load_adapters
from cinesynth.wan.card import Parent, check_adapters
from cinesynth.wan.condition import ConditionEncoder
from cinesynth.wan.device_memory import is_out_of_memory
from cinesynth.wan.folder import base_hash, model_hash, model_spec
from cinesynth.wan.kernels import Kernels
from cinesynth.wan.load import load_scheduler, load_transformer, load_vae
from cinesynth.wan.merging import Merging
from cinesynth.wan.stream import StoredWeights

log = logging.getLogger("cinesynth.generate")


@dataclass(frozen=True)
class GeneratedVideo:
    """A video and what made it."""

    frames: Frames
    """uint8 RGB [T, H, W, 3]"""
    provenance: dict[str, Any]


class Generator:
    """A loaded model that makes videos, one at a time.

    Args:
        model: 'nano', a folder or a hub id.
        device: torch device. The transformer runs in bf16 on CUDA, fp32 elsewhere; the VAE in fp32.
        ranks: this process among those that make each video together. All of them call the same methods in the same
            order; rank 0 encodes and decodes.
        kernels: how the transformer is computed. One whose weights are shared is not compiled.
        strategy: `replicate`: each rank has the whole weights; `fsdp2`: the ranks share one copy.
        merge: adapters are added to the weights, in place of being computed beside them.
    """

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        ranks: Ranks | None = None,
        kernels: Kernels | None = None,
        strategy: Literal["replicate", "fsdp2"] = "replicate",
        merge: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.ranks = ranks or Ranks(device=device.partition(":")[0])
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.spec = model_spec(model)
        self.fps = self.spec.family.fps
        shard = (self.ranks.rank, self.ranks.size) if strategy == "fsdp2" else None
        self.experts = {
            name: load_transformer(model, self.dtype, device, name, shard) for name in self.spec.family.experts
        }
        self._kernels = kernels or Kernels()
        if shard is not None and self._kernels.compiled:
            if self.ranks.rank == 0:
                log.warning("the ranks share the weights, which do not fit on each: they are computed without compile")
            self._kernels = replace(self._kernels, compiled=False)
        self._kernels.check(device.startswith("cuda"), self.ranks.size)
        for transformer in self.experts.values():
            self._kernels.choose(transformer)
        self._merging = Merging(StoredWeights(model, torch.float32)) if merge else None
        self.vae = load_vae(model, device)
        self._hashes = {"model": model_hash(model), "base": base_hash(model)}
        self._loaded: list[tuple[Path, float]] = []
        self._on: list[Parent] | None = []
        """What this rank's transformer has on it; None where a load broke off."""
        self._encoder: ConditionEncoder | None = None

    @property
    def encoder(self) -> ConditionEncoder:
        """The condition encoders; loaded on first use, as generation from a dataset does not need them."""
        if self._encoder is None:
            self._encoder = ConditionEncoder(self.model, self.device, vae=self.vae)
        return self._encoder

    @property
    def applied(self) -> list[Parent]:
        """Hashes and scales of the adapters that are loaded on this rank, in order."""
        return list(self._on or [])

    def load_adapters(self, adapters: list[tuple[Path, float]]) -> None:
        """Replace what is loaded by these (folder, scale) pairs, in order; [] is the base model.

        All ranks end with the same adapters: where one cannot load them, those that were loaded before stay everywhere.

        Raises:
            AdapterError: as `cinesynth.wan.adapter.load_adapters` does, and for a model of two experts.
            BrokenModel: those of before could not be put back either, or what went wrong is no fault of an adapter.
                Nothing is to be made with this generator.
        """
        if len(self.experts) > 1:
            if adapters:
                raise AdapterError(f"model {self.model!r} has two experts; adapters fit models with one transformer")
            return
        reasons = self._agree(lambda: self._try(adapters), AdapterError)
        if not reasons:
            self._loaded = adapters
            return
        unable = self._agree(lambda: self._try(self._loaded), AdapterError)
        if unable:
            raise BrokenModel(f"{unable[0]}; after {reasons[0]}")
        raise AdapterError(reasons[0])

    def _agree(self, action: Callable[[], None], refusal: type[CinesynthError]) -> list[str]:
        """Refusals of the ranks on which an action met one. What else it meets on any rank is raised on all of them.

        Raises BrokenModel for faults that say nothing of what was asked, such as an error of a GPU or of a store.
        """
        refused, fault = None, None
        try:
            action()
        except refusal as e:
            refused = str(e)
        except Exception as e:
            if is_out_of_memory(e) or self.ranks.size == 1:
                raise
            fault = f"{type(e).__name__}: {e}"
        if faults := self.ranks.reasons(fault):
            raise BrokenModel(faults[0])
        return self.ranks.reasons(refused)

    def _try(self, adapters: list[tuple[Path, float]]) -> None:
        """Load adapters on this rank, unless they are on it."""
        (transformer,) = self.experts.values()
        base = self._hashes["base"]
        if self._on is not None and check_adapters(adapters, base) == self._on:
            return
        self._on = None
        if self._merging is None:
            self._kernels.adapters_changed()
            self._on = load_adapters(transformer, adapters, base)
        else:
            self._on = self._merging.load(transformer, adapters, base)

    def generate(
        self,
        image: Image.Image,
        prompt: str,
        num_frames: int,
        height: int,
        width: int,
        sampler: SamplerSettings,
        course: Course = UNWATCHED,
        start_sigma: float | None = None,
    ) -> GeneratedVideo:
        """A video that starts at `image`, centre-cropped and resized to `height` x `width`.

        Args:
            image: any size. Only rank 0 looks at it.
            prompt: cut at the family's number of text tokens, as the model's own pipeline does.
            num_frames: one that the family has; Wan's are 4n+1.
            height, width: pixels, multiples of the family's step; Wan2.1's is 16.
            sampler: steps, guidance, shift, seed.
            course: what goes on beside it.
            start_sigma: noise level that the image, held still, is denoised from; default: noise alone.

        Raises as `generate_from` does.
        """
        conditions: Conditions | None = None

        def encode() -> None:
            nonlocal conditions
            if self.ranks.rank:
                return
            frame = crop_to(image, height, width)
            conditions = self.conditions(frame, prompt, num_frames, sampler)
            if start_sigma is not None:
                still = self.encoder.latents(np.repeat(np.asarray(frame)[None], num_frames, axis=0))
                conditions = replace(conditions, start_latents=still, start_sigma=start_sigma)

        if reasons := self._agree(encode, CinesynthError):
            raise GenerationError(reasons[0])
        video = self.generate_from(self.ranks.broadcast(conditions), sampler, course)
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
        self, conditions: Conditions, sampler: SamplerSettings, course: Course = UNWATCHED
    ) -> GeneratedVideo:
        """A video from encoded conditions; shape and length are those of the condition latents.

        On ranks other than 0 it has no frames.

        Raises:
            ModelError: conditions that another model's encoders made.
            StateOfAnother: a state of another request.
            GenerationError: latents that are not finite.
            Cancelled: the video was called off.
        """
        check_conditions(self.spec, conditions)
        scheduler = load_scheduler(self.model, sampler.flow_shift)
        request = self.request_hash(conditions, sampler)
        _, frames, height, width = conditions.condition_latents.shape
        tokens = self.spec.family.tokens(frames, height, width)
        plan = choose_plan(self.ranks.size, sampler.guidance_scale > 1, tokens)
        self.ranks.divide(self.experts.values(), plan)
        where = self.device, self.dtype
        with self._kernels.eager(bool(plan.uneven)):  # diffusers' exchange of unequal parts does not compile
            latents = denoise(
                self.spec, self.experts, scheduler, conditions, sampler, *where, course, self.ranks, request
            )
        provenance: dict[str, Any] = {
            "generator": f"cinesynth {cinesynth.__version__}",
            "model": self.model,
            "model_sha256": self._hashes["model"],
            "adapters": [a.model_dump() for a in self._on or []],
            "sampler": {**sampler.model_dump(), "scheduler": type(scheduler).__name__},
        }
        if self._merging is not None and self._on:
            provenance["merged"] = True
        if self.ranks.size > 1:
            provenance["ranks"] = self.ranks.size
        course.on_stage("decode")
        # A picture of fewer latent rows than ranks is decoded by rank 0.
        together = self.ranks if height >= self.ranks.size else None
        if together is None and self.ranks.rank:
            return GeneratedVideo(np.zeros((0, 0, 0, 3), np.uint8), provenance)
        return GeneratedVideo(decode(self.spec, self.vae, latents, course.stops, together), provenance)

    def request_hash(self, conditions: Conditions, sampler: SamplerSettings) -> str:
        """Of everything that a video depends on: model, adapters, conditions and settings."""
        given = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
        tensors = {k: _content(v) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        adapters = [adapter.model_dump() for adapter in self._on or []]
        merged = ["merged"] if self._merging is not None else []
        return sha256_json([self._hashes["model"], adapters, tensors, sampler.model_dump(), *merged])


def _content(tensor: torch.Tensor) -> str:
    plain = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(repr(plain.shape).encode() + plain.tobytes()).hexdigest()
