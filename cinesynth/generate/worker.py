"""One model replica of generation: makes the videos that it is given, and uploads each as it is finished."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import GenerateConfig, SamplerSettings, ShotRequest
from cinesynth.data.dataset import ClipsDataset
from cinesynth.data.video import write_video
from cinesynth.generate.sampler import Conditions, GeneratedVideo, Generator
from cinesynth.pictures import read_picture
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, scratch_folder


def window_seed(seed: int, window_id: str) -> int:
    """The noise seed of a held-out window: the same for every arm, another for every window."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{window_id}".encode()).digest()[:4], "big") >> 1


class GenerateWorker:
    """One model replica of the actor pool."""

    def __init__(
        self, config: dict[str, Any], arms: dict[str, list[tuple[str, float]]], dataset: Any, run: tuple[Any, str, str]
    ) -> None:
        started = time.monotonic()
        self.config = parse_config(GenerateConfig, config)
        self.generator = Generator(self.config.model, "cuda" if torch.cuda.is_available() else "cpu")
        self.arms = {arm: [(Path(p), scale) for p, scale in adapters] for arm, adapters in arms.items()}
        self.arm: str | None = None
        self.run = Storage(*run)
        self.windows: dict[str, Any] = {}
        if dataset is not None:
            clips = ClipsDataset.open(Storage(*dataset))
            cache = scratch_folder("shards", clips.manifest_sha256)
            staged = clips.stage(cache, self.config.split)
            self.windows = {w.window_id: i for i, w in enumerate(clips.windows(self.config.split))}
            self.staged = staged
            self.negative = self._negative(clips)
        else:
            self.generator.encoder.load()
        self.load_seconds = time.monotonic() - started

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        task = {key: values[0] for key, values in batch.items()}
        started = time.monotonic()
        if task["arm"] != self.arm:
            self.generator.load_adapters(self.arms[task["arm"]])
            self.arm = task["arm"]
            self.load_seconds += time.monotonic() - started
        started = time.monotonic()
        video = self._shot(task["shot"]) if "shot" in task else self._window(task["window_id"])
        codec = "h264" if task["file"].endswith(".mp4") else "ffv1"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(task["file"]).name
            write_video(path, video.frames, self.generator.fps, "h264" if codec == "h264" else "ffv1", video.provenance)
            self.run.upload(path, task["file"])
        return {
            "file": [task["file"]],
            "worker": [f"{socket.gethostname()}/{os.getpid()}"],
            "load_seconds": [self.load_seconds],
            "video_seconds": [time.monotonic() - started],
        }

    def _negative(self, clips: ClipsDataset) -> torch.Tensor | None:
        """Embedding of the negative prompt, or None without guidance. That of the empty prompt is in the dataset."""
        sampler = self.config.sampler
        if sampler.guidance_scale <= 1:
            return None
        if sampler.negative_prompt:
            return self.generator.encoder.prompt_embeds(sampler.negative_prompt)
        return torch.as_tensor(clips.empty_prompt_embeds())

    def _shot(self, shot: dict[str, Any]) -> GeneratedVideo:
        request = ShotRequest.model_validate(shot)
        return self.generator.generate(
            read_picture(request.image),
            request.prompt,
            request.num_frames,
            request.height,
            request.width,
            self.config.sampler,
        )

    def _window(self, window_id: str) -> GeneratedVideo:
        row = self.staged[self.windows[window_id]]
        sampler: SamplerSettings = self.config.sampler
        seeded = sampler.model_copy(update={"seed": window_seed(sampler.seed, window_id)})
        return self.generator.generate_from(Conditions.of_row(row, self.negative), seeded)
