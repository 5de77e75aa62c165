"""Model families behind one interface: the videos of held-out windows by a model of any of them, timed one by one.

A family is a line of `MAKERS`. AnimateDiff (Guo et al., arXiv 2307.04725) is diffusers' `AnimateDiffPipeline` with the
components in a folder, as its `save_pretrained` leaves them; it makes videos of a prompt and does not see the first
frame, so its paired metrics say how far it is from the real window, and not how well it goes on from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field

from cinesynth.config import DATASET, JobConfig, SamplerSettings
from cinesynth.data.dataset import ClipsDataset, WindowRow, pixels_file
from cinesynth.data.spread import some_of
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import ModelError
from cinesynth.generate.driver import keeper_of_seconds
from cinesynth.generate.held_out import window_seed
from cinesynth.locate import locate_dataset
from cinesynth.pictures import Frames
from cinesynth.pool import Pool
from cinesynth.processor import device_title
from cinesynth.runs import Run, records_its_end
from cinesynth.session import interruptible
from cinesynth.settings import runtime
from cinesynth.storage import Storage, scratch_folder, sha256_file, sha256_json
from cinesynth.studies.config import FamilySettings

log = logging.getLogger("cinesynth.studies")


class VideoMaker(Protocol):
    """A model that is loaded. `fps` is that of its videos."""

    fps: float

    def make(self, prompt: str, first: Frames, num_frames: int, sampler: SamplerSettings) -> Frames:
        """A video: uint8 RGB [T, H, W, 3], in the size of `first` [H, W, 3]."""
        ...


class WanMaker:
    """Wan image-to-video.

    Args:
        model: 'nano', a folder or a hub id.
        device: torch device.
    """

    def __init__(self, model: str, device: str) -> None:
        from cinesynth.generate.sampler import Generator

        self._generator = Generator(model, device)
        self.fps = float(self._generator.fps)

    def make(self, prompt: str, first: Frames, num_frames: int, sampler: SamplerSettings) -> Frames:
        from PIL import Image

        height, width = first.shape[:2]
        return self._generator.generate(Image.fromarray(first), prompt, num_frames, height, width, sampler).frames


class AnimateDiffMaker:
    """AnimateDiff.

    Args:
        folder: of the pipeline's components; nothing is fetched.
        device: torch device; fp16 on a GPU, fp32 elsewhere.
    """

    fps = 8.0
    """As it was trained: arXiv 2307.04725, 16 frames of WebVid at a stride of 4."""

    def __init__(self, folder: str, device: str) -> None:
        from diffusers import AnimateDiffPipeline

        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        try:
            pipeline = AnimateDiffPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        except (OSError, ValueError, TypeError) as e:
            raise ModelError(f"{folder}: is no folder of an AnimateDiffPipeline: {' '.join(str(e).split())}") from e
        self._pipeline = pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)

    def make(self, prompt: str, first: Frames, num_frames: int, sampler: SamplerSettings) -> Frames:
        height, width = first.shape[:2]
        made = self._pipeline(
            prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            negative_prompt=sampler.negative_prompt,
            generator=torch.Generator("cpu").manual_seed(sampler.seed),
            output_type="np",
        )
        return np.rint(255 * np.asarray(made.frames[0])).astype(np.uint8)


MAKERS: dict[str, Callable[[str, str], VideoMaker]] = {"wan": WanMaker, "animatediff": AnimateDiffMaker}


class FamilyConfig(JobConfig, FamilySettings):
    """Held-out windows made by a model of a family, one after another in one process. A cell of a study."""

    kind: ClassVar[str] = "family"
    dataset: str = runtime(description=DATASET)
    split: str = Field(description="of the dataset")
    max_windows: int = Field(ge=1, description="one of each group before a second")
    sampler: SamplerSettings = SamplerSettings()
    use_gpu: bool = runtime(False)
    resources: Pool = runtime(Pool())


def folder_hash(folder: str) -> str:
    """Hash of the content of a model's folder; of a model that has a name, of that.

    Raises ModelError for a path that is no folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        if "/" in folder and not folder.count("/") == 1:
            raise ModelError(f"{folder}: there is no such folder")
        return f"named {folder}"
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_json({p.relative_to(path).as_posix(): sha256_file(p) for p in files})


@records_its_end
def make_family_videos(config: FamilyConfig) -> dict[str, Any]:
    """Make the videos that are not there yet: on a GPU in a task of the connected cluster, else in this process."""
    dataset = locate_dataset(Storage.open(config.storage), config.dataset)
    run = Run.open(config, {"dataset": dataset.manifest_sha256, "model": folder_hash(config.folder)})
    if (done := run.result()) is not None:
        return done
    if config.use_gpu:
        import ray

        task = ray.remote(num_gpus=1, **config.resources.options(1))(_make_all)
        place = dataset.storage.reference()
        interruptible(lambda: ray.get(task.remote(config, run.folder.reference(), place, "cuda")), lambda: None)
    else:
        _make_all(config, run.folder.reference(), dataset.storage.reference(), "cpu")
    videos = run.folder.list("videos/video")
    return run.finish({"videos": run.folder.child("videos").uri}, {"videos": len(videos)})


def _make_all(config: FamilyConfig, run: tuple[Any, ...], dataset: tuple[Any, ...], device: str) -> None:
    folder, clips = Storage(*run), ClipsDataset.open(Storage(*dataset))
    keep = keeper_of_seconds(folder)
    started = time.monotonic()
    maker = MAKERS[config.family](config.folder, device)
    group = {"group": 0, "device": device_title(device), "load_seconds": time.monotonic() - started}
    for window in some_of(clips.windows(config.split), config.max_windows):  # type: ignore[arg-type]
        file = f"videos/video/{window.window_id}.mkv"
        if folder.exists(file):
            continue
        first = _first_frame(clips, window)
        seed = window_seed(config.sampler.seed, window.window_id)
        began = time.monotonic()
        sampler = config.sampler.model_copy(update={"seed": seed})
        frames = maker.make(window.caption, first, config.frames, sampler)
        seconds = round(time.monotonic() - began, 3)
        path = write_video(scratch_folder("families") / f"{window.window_id}.mkv", frames, maker.fps, "ffv1")
        folder.upload(path, file)
        path.unlink()
        keep({**group, "file": file, "seconds": {"video": seconds}})
        log.info("%s: a video in %.2f s", config.family, seconds)


def _first_frame(clips: ClipsDataset, window: WindowRow) -> Frames:
    local = scratch_folder("families") / f"real-{window.window_id}.mkv"
    frames, _ = read_video(clips.storage.download(pixels_file(window.window_id), local), 1)
    local.unlink(missing_ok=True)
    first: Frames = frames[0]
    return first
