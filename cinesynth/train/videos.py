"""Validation by videos: a checkpoint makes held-out windows again, each from the noise of its window, and they are
compared with the real ones."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cinesynth.config import EvaluateSettings, SamplerSettings, TrainConfig
from cinesynth.data.dataset import ClipsDataset, WindowRow
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import WeightsUnavailable
from cinesynth.generate.course import Cancelled, Course
from cinesynth.generate.denoise import Conditions, decode, denoise
from cinesynth.generate.held_out import HeldOutVideos, chosen_windows
from cinesynth.generate.sampler import Generator
from cinesynth.locate import locate_adapter
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.kept import KeptWork
from cinesynth.metrics.statistics import MIN_GROUPS
from cinesynth.pictures import Frames
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_json
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.memory import memory_errors_told
from cinesynth.train.strategy import World
from cinesynth.train.telemetry import write_scalars
from cinesynth.train.validations import Validations, video_file
from cinesynth.wan.folder import model_spec
from cinesynth.wan.load import load_scheduler, load_vae

log = logging.getLogger("cinesynth.train")

_LOOK_S = 2.0
"""Between two looks for validations that others did."""


def validated_windows(config: TrainConfig, dataset: ClipsDataset) -> list[WindowRow]:
    """Those of the val split that are made again. Raises DatasetError when it is empty."""
    assert config.validation_videos is not None
    return chosen_windows(dataset, "val", config.validation_videos.max_windows, "validation_videos")


def validation_metrics(windows: list[WindowRow]) -> list[str]:
    """LPIPS, and KVD where there are groups and frames enough for it."""
    enough = len({w.group for w in windows}) >= MIN_GROUPS
    long = min(w.num_frames for w in windows) >= catalogue.find("kvd").network.min_frames
    return ["lpips", "kvd"] if enough and long else ["lpips"]


class VideoValidation:
    """Makes and compares the windows of a training's validations.

    Args:
        config: of the training.
        dataset: with a val split.
        device: that the networks run on.
    """

    def __init__(self, config: TrainConfig, dataset: ClipsDataset, device: str) -> None:
        assert config.validation_videos is not None
        self.device, self.model, self.seed = device, config.model, config.seed
        self.sampler = config.validation_videos.sampler
        self.windows = validated_windows(config, dataset)
        self.videos = HeldOutVideos(config.model, dataset, "val", self.windows, self.sampler)
        self.kept = KeptWork(Storage.open(config.storage))

    def make(self, window: WindowRow, make: Callable[[Conditions, SamplerSettings], Frames]) -> Frames:
        """A window again: uint8 RGB [T, H, W, 3]. Its noise depends on the seed and the window only."""
        return self.videos.make(window.window_id, self.seed, make)

    def record(self, made: Mapping[str, Frames], validations: Validations, step: int, started: float) -> str:
        """Compare the videos with the real ones, keep them, and commit the validation; returns a line that tells of it.

        Args:
            made: frames by window id, of all windows.
            validations: of the run.
            step: of the checkpoint.
            started: time in seconds since the epoch.
        """
        with tempfile.TemporaryDirectory(prefix="cinesynth-validation-") as scratch:
            real, fake = Path(scratch) / "real", Path(scratch) / "made"
            self.videos.write_real(real)
            self.videos.write_made(made, fake)
            for window_id, frames in made.items():
                shown = {video_file(step, window_id): frames}
                if not validations.folder.exists(video_file(None, window_id)):
                    shown[video_file(None, window_id)] = read_video(real / f"{window_id}.mkv")[0]
                for name, pictures in shown.items():
                    playable = write_video(Path(scratch) / "playable.mp4", pictures, self.videos.fps)
                    validations.folder.upload(playable, name)
            figures = self._compare(real, fake)
        event = {"step": step, "time": time.time(), **{f"val_{name}": value for name, value in figures.items()}}
        write_scalars(validations.run, f"validation-{step:08d}", [event])
        identity = [sorted(made), self.sampler.model_dump(mode="json")]
        validations.write(
            step,
            {
                "figures": figures,
                "windows": [{"video": w.window_id, "group": w.group, "caption": w.caption} for w in self.windows],
                "set": sha256_json(identity)[:12],
                "started": started,
                "ended": time.time(),
            },
        )
        told = "  ".join(f"{catalogue.label(name)} {value:.4f}" for name, value in figures.items())
        return f"step {step}: {len(made)} videos in {time.time() - started:.0f} s: {told}"

    def _compare(self, real: Path, fake: Path) -> dict[str, float]:
        groups = self.videos.groups()
        settings = EvaluateSettings(metrics=validation_metrics(self.windows), use_gpu=self.device.startswith("cuda"))
        record = compare(real, {"made": fake}, groups, settings, kept=self.kept)
        for value in record.values:
            if value.value is None and value.metric == "lpips":
                raise WeightsUnavailable(str(value.reason))
            if value.value is None:
                log.warning("validation without %s: %s", record.label(value.metric), value.reason)
        return {value.metric: value.value for value in record.values if value.value is not None}


class VideoWatch:
    """A worker's view of the validations: whether they end the training, and the validations themselves where they are
    made `inline`. A `loop.Watch`.

    Args:
        validations: of the run.
        world: this worker among all. Rank 0 looks at the records, and writes them.
        inline: makes the videos, with the workers' own model; None: others do, while training goes on.
        dtype: of the computation.
    """

    def __init__(
        self, validations: Validations, world: World, inline: VideoValidation | None, dtype: torch.dtype
    ) -> None:
        self.validations, self.world, self.inline, self.dtype = validations, world, inline, dtype
        self._due = set(validations.due)
        self._ends = False
        if inline is not None:
            self._spec = model_spec(inline.model)
            self._vae = load_vae(inline.model, world.device)
        if world.rank == 0 and validations.early_stop is not None:
            self._look()
            if inline is None:
                threading.Thread(target=self._keep_looking, name="looks-for-validations", daemon=True).start()

    def due(self, step: int) -> bool:
        return step in self._due

    def ends(self) -> bool:
        return self._ends

    def needed(self) -> set[int]:
        """Steps whose checkpoints are kept for a validation, or as the best."""
        return self.validations.needed(self.validations.due)

    def validate(self, step: int, model: torch.nn.Module) -> None:
        if self.inline is None:
            return
        started = time.time()
        there = torch.tensor(float(self.world.rank == 0 and step in self.validations.records()))
        if self.world.sum(there.to(self.world.device)).item():
            return
        windows, world = self.inline.windows, self.world
        made: dict[str, Frames] = {}
        model.eval()
        for round_ in range(math.ceil(len(windows) / world.data_size)):
            place = round_ * world.data_size + world.data_rank
            window = windows[min(place, len(windows) - 1)]  # all run equally many passes
            frames = self.inline.make(window, lambda conditions, sampler: self._frames(model, conditions, sampler))
            if place < len(windows):
                made[window.window_id] = frames
        model.train()
        gathered = world.gather(made)
        if world.rank == 0:
            everything = {window_id: frames for part in gathered for window_id, frames in part.items()}
            log.info("%s", self.inline.record(everything, self.validations, step, started))
            self._look()

    def _frames(self, model: torch.nn.Module, conditions: Conditions, sampler: SamplerSettings) -> Frames:
        assert self.inline is not None
        scheduler = load_scheduler(self.inline.model, sampler.flow_shift)
        experts: Any = {self._spec.family.experts[0]: model}
        latents = denoise(self._spec, experts, scheduler, conditions, sampler, self.world.device, self.dtype)
        return decode(self._spec, self._vae, latents)

    def _look(self) -> None:
        self._ends = self.validations.early_stop is not None and self.validations.verdict().ends_at is not None

    def _keep_looking(self) -> None:
        while not self._ends:
            time.sleep(_LOOK_S)
            try:
                self._look()
            except Exception as e:  # a storage that is away for a moment: training goes on
                log.warning("validations cannot be looked at: %s", e)


def validate_checkpoint(task: dict[str, Any]) -> str:
    """Validate one checkpoint of a run, in a process of its own; returns a line that tells of it.

    It ends by itself, after a denoising step, once other validations have ended the training before this step.

    Args:
        task: `config` of the training, `dataset` (a storage reference), `parents` (reference, scale) and `step`.
    """
    config = parse_config(TrainConfig, task["config"])
    validations = Validations(Storage.open(config.storage).child("runs", config.name), config)
    try:
        with memory_errors_told(
            f"the validation of step {task['step']}", "validate on devices with more memory, or take smaller windows"
        ):
            return _validate(config, task, validations)
    except Cancelled:
        return f"step {task['step']}: its videos are not needed any more"


def _validate(config: TrainConfig, task: dict[str, Any], validations: Validations) -> str:
    started = time.time()
    storage, run = Storage.open(config.storage), validations.run
    course = Course(stops=Seldom(lambda: not validations.missing([task["step"]])))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    validation = VideoValidation(config, ClipsDataset.open(Storage(*task["dataset"])), device)
    parents = [(locate_adapter(storage, ref), scale) for ref, scale in task["parents"]]
    generator = Generator(config.model, device)
    with tempfile.TemporaryDirectory() as local:
        adapter = StoredCheckpoints(run.child("checkpoints")).adapter(task["step"], Path(local) / "adapter")
        assert adapter is not None
        generator.load_adapters([*parents, (adapter, 1.0)])
    made = {
        w.window_id: validation.make(w, lambda c, sampler: generator.generate_from(c, sampler, course).frames)
        for w in validation.windows
    }
    return validation.record(made, validations, task["step"], started)


class Seldom:
    """A question that is asked often, and put at most every few seconds; between two answers, the last one stands."""

    def __init__(self, question: Callable[[], bool], every_s: float = _LOOK_S) -> None:
        self.question, self.every_s = question, every_s
        self._answer, self._next = False, 0.0

    def __call__(self) -> bool:
        if time.monotonic() >= self._next:
            self._answer, self._next = self.question(), time.monotonic() + self.every_s
        return self._answer
