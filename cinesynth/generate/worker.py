"""One model replica of generation: makes the videos that it is given, and uploads each as it is finished."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import GenerateConfig, ShotRequest
from cinesynth.data.dataset import ClipsDataset
from cinesynth.data.video import write_video
from cinesynth.generate.held_out import HeldOutVideos
from cinesynth.generate.sampler import GeneratedVideo, Generator
from cinesynth.pictures import read_picture
from cinesynth.settings import parse_config
from cinesynth.storage import Storage


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
        self.held_out: HeldOutVideos | None = None
        if dataset is not None:
            clips = ClipsDataset.open(Storage(*dataset))
            split, encoder = self.config.split, self.generator.encoder
            assert split is not None
            self.held_out = HeldOutVideos(
                self.config.model, clips, split, clips.windows(split), self.config.sampler, encoder
            )
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
        assert self.held_out is not None
        return self.held_out.make(window_id, self.config.sampler.seed, self.generator.generate_from)
