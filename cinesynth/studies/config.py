"""The configuration of `jobs.study`: one for all studies of a model, so that they share their cells."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from cinesynth.config import DATASET, MODEL, EvaluateSettings, GenerateSettings, JobConfig, TrainSettings
from cinesynth.metrics.statistics import MIN_GROUPS
from cinesynth.settings import NAME_PATTERN, Finite, Settings, locations, runtime

STUDIES = {
    "rank_quality": "How does the rank of a LoRA trade the videos' distribution (FVD, KVD) against perceptual quality "
    "(R-LPIPS, or LPIPS), window by window and over the segments of a long clip?",
    "domain_shift": "How does the adapted model do on scenes of a domain that it was not trained on, against those of "
    "its own, by FID, KID, CLIP-based distances and KVD?",
    "rank_motion": "What does a lower rank do to MotionScore, and to motion in a domain that was not trained on?",
    "lora_vs_full": "Does LoRA reach the temporal stability of full fine-tuning, by FVD-128 and FID-128?",
    "latency_quality": "How does the time that a video takes trade against temporal consistency (TSSIM, tLP)?",
}
"""Study to the question that it asks. Each is a file of this folder, with `cells` and `findings`."""


def _study(name: str) -> str:
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"is not a study; {hint}known are {', '.join(STUDIES)}")
    return name


class FullSettings(Settings):
    """The full fine-tuning that LoRA is compared with."""

    lr: Finite = Field(3e-4, gt=0, description="learning rate, which `lr_factors` vary")


class FamilySettings(Settings):
    """A model of any family, whose videos are timed beside the adapter's."""

    family: Literal["wan", "animatediff"] = Field(description="animatediff: diffusers' AnimateDiffPipeline")
    folder: str = runtime(description="folder of the model; its content counts")
    frames: int = Field(16, ge=2, description="of each video; the real windows are compared in as many")


class LatencySettings(Settings):
    """What is timed: videos one after another by one group, the first of which is not counted."""

    step_factors: list[Finite] = Field(
        [0.5, 1.0, 2.0], min_length=1, description="denoising steps, as factors of generate.sampler.steps"
    )
    ranks: list[int] = Field([1, 2], min_length=1, description="processes of a group that make each video together")
    repeats: int = Field(5, ge=1, description="videos whose median counts, after one that warms the group up")
    cpus_per_worker: Finite = runtime(1.0, gt=0, description="CPUs of each process of a group")
    families: dict[Annotated[str, Field(pattern=NAME_PATTERN)], FamilySettings] = Field(
        {}, description="name to a model of another family, or of the same one"
    )


class StudySettings(Settings):
    """The grid, and how its adapters are trained and its videos made and measured."""

    domains: dict[Annotated[str, Field(pattern=NAME_PATTERN)], str] = locations(
        description="two domains to their datasets: the first is trained on, the second never",
    )
    long: str = runtime(
        description=f"dataset of the first domain's long clips, of windows of at least 129 frames: {DATASET}"
    )
    ranks: list[int] = Field([4, 8, 32], min_length=2, description="of the adapters; alpha is twice the rank")
    seeds: list[int] = Field([0, 1], min_length=1, description="of the trainings; the first one chooses lr")
    lr_factors: list[Finite] = Field(
        [0.5, 1.0, 2.0],
        min_length=1,
        description="the small grid of learning rates, as factors of train.optimizer.lr; each rank takes the best on "
        "val, beside the fixed one, 1",
    )
    train: TrainSettings = Field(description="the training; rank, alpha, lr and seed are the grid's")
    full: FullSettings = FullSettings()
    generate: GenerateSettings = Field(description="how the windows of `split` are made again")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="the studies name the metrics")
    latency: LatencySettings = LatencySettings()

    @field_validator("domains")
    @classmethod
    def _two_domains(cls, domains: dict[str, str]) -> dict[str, str]:
        if len(domains) != 2:
            raise ValueError(f"holds {len(domains)}: give two, the one that is trained on first")
        if len(set(domains.values())) < 2:
            raise ValueError("has one dataset twice: the second domain is a dataset of its own, never trained on")
        return domains

    @field_validator("ranks", "seeds", "lr_factors")
    @classmethod
    def _different(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError("holds a value twice")
        return values

    @model_validator(mode="after")
    def _of_held_out_windows(self) -> StudySettings:
        if self.generate.split is None:
            raise ValueError("generate.split is null, but studies make held-out windows again: set it to test")
        if self.generate.adapters or self.generate.arms:
            raise ValueError("generate.adapters and generate.arms are what the study trains: leave them out")
        if self.train.mode != "lora" or self.train.early_stop is not None:
            raise ValueError("train needs mode lora and no early_stop: the grid's cells train equally many steps")
        if 1.0 not in self.lr_factors:
            raise ValueError("lr_factors lacks 1, the fixed learning rate, which the best one is compared with")
        return self

    def latency_steps(self) -> list[int]:
        """Denoising steps of the videos that are timed, each once."""
        steps = (round(factor * self.generate.sampler.steps) for factor in self.latency.step_factors)
        return sorted({max(1, count) for count in steps})

    def latency_windows(self) -> int:
        """Windows that are made to be timed: one to warm up and those that count, and enough groups for intervals."""
        return max(self.latency.repeats + 1, MIN_GROUPS)

    @property
    def home(self) -> str:
        """The domain that is trained on."""
        return next(iter(self.domains))

    @property
    def away(self) -> str:
        """The domain that is not."""
        return list(self.domains)[1]


class StudyConfig(JobConfig, StudySettings):
    """The run of a study is `<name>-<study>`; its cells are runs of their own, which other studies share."""

    kind: ClassVar[str] = "study"
    study: Annotated[str, AfterValidator(_study)] = Field(description=f"one of {', '.join(STUDIES)}")
    model: str = runtime("nano", description=MODEL)

    def of_run(self) -> StudyConfig:
        """The configuration under the name of the study's own run; that of the run's folder stays as it is."""
        if self.name.endswith(f"-{self.study}"):
            return self
        return self.model_copy(update={"name": f"{self.name}-{self.study}"})
