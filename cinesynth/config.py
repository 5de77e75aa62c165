"""The configuration of every job, from footage to a published adapter.

Each job has `<Job>Settings` (what a pipeline step embeds) and `<Job>Config` (the same with the run's name,
storage and Ray address).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cinesynth.data.config import PrepareSettings
from cinesynth.errors import ConfigError
from cinesynth.pool import Pool
from cinesynth.settings import (
    NAME_PATTERN,
    Decay,
    Finite,
    Retired,
    Settings,
    Side,
    WindowFrames,
    locations,
    runtime,
    side_steps,
)
from cinesynth.wan.family import DEFAULT_FAMILY, adapter_targets
from cinesynth.wan.kernels import Attention, Kernels

_SHIFTS = ", ".join(f"{table.flow_shift} at {name}" for name, table in DEFAULT_FAMILY.resolutions.items())


class RaySettings(Settings):
    """Which Ray cluster a job uses."""

    address: str | None = Field(
        None,
        description="host:port of a running head, or 'local' for a private one; "
        "default: the cluster that the job was submitted to (RAY_ADDRESS)",
    )


DATASET = "name below <storage>/datasets, or a location; what counts is its content"
MODEL = "'nano', a hub id or a folder with a Wan image-to-video model; what counts is its content"


class JobConfig(Settings):
    """What every job has: a run name, a storage location and a Ray address."""

    kind: ClassVar[str]
    name: str = runtime(pattern=NAME_PATTERN, description="run name: lower-case letters, digits, '.', '_', '-'")
    storage: str = runtime("storage", description="local folder, s3:// or gs:// location")
    ray: RaySettings = runtime(RaySettings())
    dry_run: bool = runtime(False, description="print what would be done, and end before Ray starts")


# --- prepare -------------------------------------------------------------------------------------------------


class PrepareConfig(JobConfig, PrepareSettings):
    kind: ClassVar[str] = "prepare"
    model: str = runtime("nano", description=MODEL)


# --- train ---------------------------------------------------------------------------------------------------


class LoraSettings(Settings):
    """The adapter. arXiv 2510.27364 uses rank 8, alpha 16 on cross-attention."""

    rank: int = Field(8, ge=1, le=1024, description="rank of the two factors of each layer's change")
    alpha: Finite = Field(16.0, gt=0, description="the change is scaled by alpha / rank")
    targets: Annotated[str | tuple[str, ...], BeforeValidator(adapter_targets)] = Field(
        "cross_attention",
        description="groups of layers (cross, image, self, ffn), or a regular expression over their names; default: "
        "those of the stage. cross_attention is cross and image, attention has self too, all has ffn too",
    )


class OptimizerSettings(Settings):
    """A cosine schedule after a linear warm-up."""

    algorithm: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for training all weights; its lr is about 100 times AdamW's"
    )
    steps: int = Field(4000, ge=1, description="optimiser steps")
    lr: Finite = Field(3e-5, gt=0, description="learning rate after the warm-up")
    warmup: Finite = Field(0.05, ge=0, le=1, description="share of the steps in which the learning rate rises")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay of the averages of gradient and square")
    weight_decay: Finite = Field(0.01, ge=0, description="decoupled, as a factor of the learning rate")
    batch_size: int = Field(4, ge=1, description="windows per optimiser step, over all workers")
    max_grad_norm: Finite = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class FlowSettings(Settings):
    """Distribution of the noise level: u uniform or logit-normal, sigma = k u / (1 + (k - 1) u)."""

    distribution: Literal["uniform", "logit_normal"] = Field("uniform", description="of u")
    shift: Finite = Field(DEFAULT_FAMILY.flow_shift, gt=0, description=f"k: {_SHIFTS} ({DEFAULT_FAMILY.title})")


class SamplerSettings(Settings):
    """How latents become a video."""

    steps: int = Field(40, ge=1, le=1000, description="denoising steps")
    guidance_scale: Finite = Field(5.0, ge=0, description="1 or less: no classifier-free guidance, half the time")
    flow_shift: Finite | None = Field(None, gt=0, description="default: the model's own")
    negative_prompt: str = Field(
        DEFAULT_FAMILY.negative_prompt, max_length=2000, description="what guidance leads away from"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the noise that a video starts from")


class ValidationSettings(Settings):
    """Held-out loss at fixed noise levels and fixed noise."""

    every: int = Field(250, ge=1, description="optimiser steps")
    sigmas: list[Finite] = Field(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], min_length=1, description="noise levels, each in (0, 1]"
    )
    max_windows: int = Field(32, ge=1, description="held-out windows that the loss is taken on")

    @model_validator(mode="after")
    def _in_range(self) -> ValidationSettings:
        for sigma in self.sigmas:
            if not 0 < sigma <= 1:
                raise ValueError(f"sigmas holds {sigma}; every noise level lies in (0, 1]")
        return self


class ValidationSampler(SamplerSettings):
    """How the videos of a validation are made, each from the noise of its window."""

    steps: int = Field(20, ge=1, le=1000, description="denoising steps")
    negative_prompt: str = Field(
        "", max_length=2000, description="what guidance leads away from; one that is not empty needs the text encoder"
    )


class ValidationVideos(Settings):
    """Windows of the val split that checkpoints make again, compared with the real ones by LPIPS, and by KVD where
    there are enough groups for it."""

    every: int = Field(500, ge=1, description="optimiser steps; the last step is always validated")
    max_windows: int = Field(8, ge=1, description="at most so many windows, one of each group before a second")
    sampler: ValidationSampler = ValidationSampler()
    placement: Literal["auto", "task", "inline", "after"] = runtime(
        "auto",
        description="where: task: beside training, on resources of its own; inline: on the workers, which wait; after: "
        "once training has ended; auto: task where the cluster has room for it, else inline",
    )


class EarlyStop(Settings):
    """Training ends once LPIPS has stopped falling; the best validated adapter is the one that is delivered."""

    patience: int = Field(3, ge=1, description="validations in a row without an improvement that end the training")
    min_delta: Finite = Field(0.0, ge=0, description="by how much LPIPS falls below the best before, to be one")
    warmup: int = Field(0, ge=0, description="optimiser steps whose validations are not counted")


class AdapterRef(Settings):
    """An adapter by folder or as `name@version` in the registry, and the factor it is applied with."""

    ref: str = runtime(
        min_length=1,
        description="folder, a train run's name, name@version in the registry, or a LoRA file of diffusers, ComfyUI or "
        "Kohya; its content counts",
    )
    scale: Finite = Field(1.0, description="factor that its change is applied with")


_STAGE_TARGETS = {"style": ["cross", "image"], "motion": ["self"], "joint": ["cross", "image", "self"]}


def _leaves_targets_to_stage(lora: Any) -> bool:
    given = lora.model_fields_set if isinstance(lora, LoraSettings) else lora
    return isinstance(given, Mapping | set) and "targets" not in given


def _as_mode(value: Any) -> Any:
    """0.1.0 had true and false."""
    return {"true": "full", "false": "none"}.get(str(value).lower(), value)


class TrainSettings(Settings):
    """One training stage."""

    stage: Literal["style", "motion", "joint"] = Field(
        "style",
        description="what the adapter is for, and which layers it is put on unless lora.targets says: style on cross- "
        "and image attention, motion on self-attention, joint on all three",
    )
    mode: Literal["lora", "full"] = Field("lora", description="full: all weights of the transformer, and no adapter")
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    flow: FlowSettings = FlowSettings()
    parents: list[AdapterRef] = Field([], description="adapters that lie frozen under the new one, in order")
    merge: bool = Field(
        False, description="add the parents to an fp32 base's weights, in place of computing them beside it"
    )
    caption_dropout: Finite = Field(0.0, ge=0, le=1, description="share of windows trained with the empty caption")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device has it")
    seed: int = Field(0, ge=0, lt=2**31, description="of order, noise, noise levels and the adapter's first weights")
    early_stop: EarlyStop | None = Field(
        None, description="ends the training by LPIPS, and then validation_videos is identity; null: train all steps"
    )
    validation: ValidationSettings = runtime(ValidationSettings())
    validation_videos: ValidationVideos | None = runtime(None, description="null: none are made")
    strategy: Literal["auto", "replicate", "fsdp2", "hsdp", "deepspeed"] = runtime(
        "auto", description="how the base lies on the workers; auto: a whole copy on each where a step fits"
    )
    shard_over: int | None = runtime(
        None, ge=2, description="workers that share a copy of the base under hsdp; default: those of a node"
    )
    zero_stage: Literal[2, 3] = runtime(
        3, description="what deepspeed shards: 2: gradients and optimiser; 3: the base and the adapter too"
    )
    workers: int = runtime(1, ge=1, description="processes that train together")
    cpus_per_worker: Finite = runtime(1.0, gt=0, description="CPUs of each worker")
    use_gpu: bool = runtime(False, description="one GPU for each worker")
    resources: Pool = runtime(Pool())
    micro_batch: int = runtime(1, ge=1, description="windows per forward pass on one worker")
    activation_checkpointing: Annotated[Literal["none", "full", "attention"], BeforeValidator(_as_mode)] = runtime(
        "full",
        description="what is computed again in the backward pass: nothing, each block, or all but self-attention",
    )
    attention: Attention = runtime("auto", description="kernel of PyTorch's attention; auto: PyTorch chooses")
    deterministic: bool = runtime(
        False,
        description="only kernels of a GPU that give the same bits each time: a run that goes on ends as undisturbed",
    )
    compile: bool = runtime(False, description="compile the blocks, which are compiled one for all: a slow first step")
    checkpoint_every: int = runtime(250, ge=1, description="optimiser steps")
    keep_checkpoints: int = runtime(
        2, ge=1, description="newest ones that are kept, beside the best validated one and those still to validate"
    )
    log_every: int = runtime(10, ge=1, description="optimiser steps between two lines of the log")
    max_failures: int = runtime(3, ge=0, description="restarts of the worker group before the run fails")

    @model_validator(mode="before")
    @classmethod
    def _targets_of_stage(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        targets = _STAGE_TARGETS.get(values.get("stage", "style"))
        lora = values.get("lora", {})
        if targets is None or not _leaves_targets_to_stage(lora):
            return values
        if isinstance(lora, LoraSettings):
            return {**values, "lora": lora.model_copy(update={"targets": adapter_targets(targets)})}
        return {**values, "lora": {**lora, "targets": targets}}

    def counts(self, field: str) -> bool:
        return super().counts(field) or (field == "validation_videos" and self.early_stop is not None)

    @model_validator(mode="after")
    def _same_bits(self) -> TrainSettings:
        if self.deterministic and self.attention == "cudnn":
            raise ValueError(
                "deterministic does not go with attention cudnn, which PyTorch refuses then; leave it at auto"
            )
        Kernels(self.attention, self.compile).check(self.use_gpu)
        return self

    @model_validator(mode="after")
    def _stops_by_videos(self) -> TrainSettings:
        for field in ("early_stop", "validation_videos"):
            if getattr(self, field) is not None and self.mode != "lora":
                raise ValueError(f"{field} needs mode lora: what is validated is an adapter")
        if self.early_stop is not None and self.validation_videos is None:
            raise ValueError("early_stop needs validation_videos, whose LPIPS it follows; give that too, such as {}")
        return self

    @model_validator(mode="after")
    def _divides(self) -> TrainSettings:
        if self.optimizer.batch_size % self.workers:
            raise ValueError(
                f"optimizer.batch_size {self.optimizer.batch_size} does not divide by workers {self.workers}; "
                "every worker takes the same number of windows"
            )
        return self


class TrainConfig(JobConfig, TrainSettings):
    kind: ClassVar[str] = "train"
    model: str = runtime("nano", description=MODEL)
    dataset: str = runtime(min_length=1, description=DATASET)


# --- generate ------------------------------------------------------------------------------------------------


class ClipWeights(Settings):
    """A CLIP model of open_clip."""

    model: str = Field("ViT-B-32", description="name of the architecture in open_clip")
    weights: str = runtime(description="file with its state dict; its content counts")


class KeyframeSettings(Settings):
    """The first frame of a shot, made of a reference image with the adapters."""

    sigma: Finite = Field(0.6, gt=0, le=1, description="noise level that it is taken to; near 0: the reference itself")
    frames: WindowFrames = Field(5, ge=5, description="frames of the still that is noised; the last one is taken")
    candidates: int = Field(1, ge=1, le=64, description="of which the one closest to the reference is taken")
    clip: ClipWeights | None = Field(None, description="candidates are compared by CLIP; null: by LPIPS")


class ShotRequest(Settings):
    """One video to make: a first frame and what happens after it."""

    image: str = runtime(description="image file; cropped to the video's aspect and resized; its content counts")
    prompt: str = Field(min_length=1, max_length=10000, description="what happens after the first frame")
    keyframe: KeyframeSettings | None = Field(
        None, description="the first frame is made of the image, in the style of the adapters; null: it is the image"
    )
    num_frames: WindowFrames = Field(33, description=DEFAULT_FAMILY.frame_rule)
    height: Side = Field(DEFAULT_FAMILY.default_size[1], description=f"pixels, a multiple of {side_steps()}")
    width: Side = Field(DEFAULT_FAMILY.default_size[0], description=f"pixels, a multiple of {side_steps()}")


class ExpansionSettings(Settings):
    """Shots that are longer than a segment are made of several, each begun by a frame of the one before."""

    segment_frames: WindowFrames = Field(81, description="most frames that are made at once")
    overlap: int = Field(4, ge=0, description="frames that two segments share beyond one, and that are blended")

    @model_validator(mode="after")
    def _goes_on(self) -> ExpansionSettings:
        if self.overlap > self.segment_frames - 2:
            raise ValueError(f"overlap {self.overlap} leaves nothing new in a segment of {self.segment_frames} frames")
        return self


class GenerateSettings(Settings):
    """Either `shots` (images and prompts), or `split`: every held-out window of `dataset`, for evaluation, in each of
    `arms`, or once without and once with the adapters."""

    adapters: list[AdapterRef] = Field([], description="applied to the base, in order")
    merge: bool = Field(
        False, description="add the adapters to the weights, in place of computing them beside (docs/generation.md)"
    )
    arms: dict[Annotated[str, Field(pattern=NAME_PATTERN)], list[AdapterRef]] = Field(
        {}, description="of `split`: arm name to its adapters; default: base, and adapter with `adapters`"
    )
    sampler: SamplerSettings = SamplerSettings()
    shots: list[ShotRequest] = Field([], description="videos to make from images and prompts")
    expansion: ExpansionSettings | None = Field(
        None, description="of long shots and windows; null: each is made at once"
    )
    split: Literal["val", "test"] | None = Field(None, description="held-out windows of `dataset` to make again")
    max_windows: int | None = Field(
        None, ge=1, description="at most so many windows of the split, one of each group before a second; default: all"
    )
    workers: int = runtime(1, ge=1, description="replicas of the model, each making one video at a time")
    ranks: int = runtime(1, ge=1, description="processes of a worker that make each video together, on one node")
    strategy: Literal["auto", "replicate", "fsdp2"] = runtime(
        "auto", description="how the base lies on a worker's ranks; auto: a whole copy on each where a video fits"
    )
    keep_every: int = runtime(
        10, ge=0, description="denoising steps between two states, from which a video goes on; 0: it starts anew"
    )
    cpus_per_worker: Finite = runtime(1.0, gt=0, description="CPUs of each rank")
    use_gpu: bool = runtime(False, description="one GPU for each rank")
    resources: Pool = runtime(Pool())
    attention: Attention = runtime("auto", description="kernel of PyTorch's attention; auto: PyTorch chooses")
    compile: bool = runtime(False, description="compile the blocks, which are compiled one for all: a slow first step")

    @model_validator(mode="after")
    def _one_source(self) -> GenerateSettings:
        if bool(self.shots) == (self.split is not None):
            raise ValueError("give either shots (image and prompt) or split (val or test), not both and not neither")
        return self

    @model_validator(mode="after")
    def _kernels(self) -> GenerateSettings:
        Kernels(self.attention, self.compile).check(self.use_gpu, self.ranks, self.strategy)
        return self

    @model_validator(mode="after")
    def _arms_of_a_split(self) -> GenerateSettings:
        if self.arms and (self.shots or self.adapters):
            other = "shots" if self.shots else "adapters"
            raise ValueError(f"give either arms (of a split) or {other}, not both")
        if "real" in self.arms:
            raise ValueError("arms holds 'real', which names the videos of the dataset; call the arm something else")
        return self

    def adapters_by_arm(self) -> dict[str, list[AdapterRef]]:
        """What is generated: arm name to its adapters. Shots have the one arm 'adapter'."""
        if self.shots:
            return {"adapter": self.adapters}
        return self.arms or {"base": [], **({"adapter": self.adapters} if self.adapters else {})}


class GenerateConfig(JobConfig, GenerateSettings):
    kind: ClassVar[str] = "generate"
    model: str = runtime("nano", description=MODEL)
    dataset: str | None = runtime(None, description=f"of `split`: {DATASET}")

    @model_validator(mode="after")
    def _dataset_for_split(self) -> GenerateConfig:
        if self.split is not None and not self.dataset:
            raise ValueError(f"split: {self.split!r} needs dataset: the clips dataset whose windows are generated")
        return self


# --- evaluate ------------------------------------------------------------------------------------------------


def _known_metric(name: str) -> str:
    from cinesynth.metrics import catalogue

    return catalogue.find(name).name


MetricName = Annotated[str, AfterValidator(_known_metric)]


class EvaluateSettings(Settings):
    """Which metrics, and how the videos are brought to the networks."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "lpips_net": Retired("alex", "the metric lpips is AlexNet's; ask for the metric lpips_vgg to have VGG-16's")
    }
    metrics: list[MetricName] = runtime(
        ["fvd", "kvd", "lpips"],
        min_length=1,
        description="names in the catalogue of metrics (docs/metrics.md); more of them may be added to a run",
    )
    frames: int | None = Field(None, ge=1, description="first frames of every video; default: all, equally many")
    r_lpips_weights: str | None = runtime(
        None,
        description="file with the published state dict of R-LPIPS; the metric r_lpips needs it; its content counts",
    )
    weights: str | None = runtime(
        None, description="folder with the weight files (docs/metrics.md); default: the cache, which fills itself"
    )
    require: bool = runtime(
        False, description="weights that cannot be had fail the job; else their metrics have no value, and the reason"
    )
    batch_size: int = runtime(4, ge=1, description="videos that a network takes at once")
    workers: int = runtime(1, ge=1, description="Ray actors, where a Ray cluster is used")
    cpus_per_worker: Finite = runtime(1.0, gt=0, description="CPUs of each worker")
    use_gpu: bool = runtime(False, description="one GPU for each worker")
    resources: Pool = runtime(Pool())

    @model_validator(mode="after")
    def _robust_weights(self) -> EvaluateSettings:
        if "r_lpips" in self.metrics and not self.r_lpips_weights:
            raise ValueError(
                "metrics holds r_lpips, whose published weights are in no package: set r_lpips_weights to the file "
                "(latest_net_linf_x0.pth of SaraGhazanfari/R-LPIPS), or ask for lpips"
            )
        return self


class DatasetSplit(Settings):
    """The held-out windows of a dataset."""

    dataset: str = Field(description=DATASET)
    split: Literal["val", "test"] = Field(description="whose windows are the real videos")


class EvaluateConfig(JobConfig, EvaluateSettings):
    """Compare folders of videos: `real` against each of `arms` (paired by file name where names match)."""

    kind: ClassVar[str] = "evaluate"
    real: Annotated[str, Field(min_length=1)] | DatasetSplit = runtime(
        description="folder of reference videos, or `{dataset: NAME, split: test}` for the windows that arms have"
    )
    arms: dict[Annotated[str, Field(pattern=NAME_PATTERN)], str] = locations(
        min_length=1, description="arm name to folder of videos; differences are to the first"
    )
    groups: str | None = runtime(
        None,
        description="CSV with columns video, group (also caption, domain); default: the dataset's, or each its own",
    )

    @model_validator(mode="after")
    def _arms_are_not_real(self) -> EvaluateConfig:
        if "real" in self.arms:
            raise ValueError("arms holds 'real', which names the reference videos; call the arm something else")
        return self

    def check_inputs(self) -> None:
        from cinesynth.metrics import catalogue

        folders = {f"arms.{name}": folder for name, folder in self.arms.items()}
        if isinstance(self.real, str):
            folders["real"] = self.real
        for key, folder in folders.items():
            if "://" not in folder and not Path(folder).expanduser().is_dir():
                raise ConfigError(f"{key}: {folder!r} is not a folder; give a folder of videos")
        if self.groups and "://" not in self.groups and not Path(self.groups).expanduser().is_file():
            raise ConfigError(f"groups: {self.groups!r} does not exist; give a CSV file with columns video, group")
        captions = [m.name for m in catalogue.chosen(self.metrics) if "caption" in m.needs]
        if captions and not self.groups and isinstance(self.real, str):
            raise ConfigError(
                f"metrics: {captions[0]} reads captions; set groups to a CSV with the columns video, group, caption"
            )
        if self.r_lpips_weights and not Path(self.r_lpips_weights).expanduser().is_file():
            raise ConfigError(
                f"r_lpips_weights: {self.r_lpips_weights!r} is not a file; give the state dict of R-LPIPS"
            )
        if self.weights and not Path(self.weights).expanduser().is_dir():
            raise ConfigError(f"weights: {self.weights!r} is not a folder; give one, or leave it unset")


# --- tune ----------------------------------------------------------------------------------------------------

Span = tuple[Finite, Finite]
OBJECTIVES = ("fvd", "kvd", "lpips", "lpips_late", "r_lpips")


class SearchSpace(Settings):
    """What is searched. A field that is null stays as the stage has it; two equal ends are one value."""

    rank: tuple[int, int] | None = Field((4, 64), description="least and most, powers of two")
    alpha: Span | None = Field(None, description="least and most")
    alpha_over_rank: Span | None = Field((0.5, 4.0), description="least and most, in place of alpha")
    lr: Span | None = Field((1e-5, 3e-4), description="least and most, on a logarithmic scale")
    shift: Span | None = Field(None, description="of the noise levels: least and most")
    targets: list[Annotated[str | tuple[str, ...], BeforeValidator(adapter_targets)]] | None = Field(
        None, description="choices of what the adapter is put on, each as lora.targets takes it"
    )

    @model_validator(mode="after")
    def _is_a_space(self) -> SearchSpace:
        wide = bool(self.targets and len(self.targets) > 1)
        for name in ("rank", "alpha", "alpha_over_rank", "lr", "shift"):
            span = getattr(self, name)
            if span is None:
                continue
            low, high = span
            if not 0 < low <= high:
                raise ValueError(f"{name} goes from {low} to {high}; give the lower end first, above 0")
            wide |= low < high
        for end in self.rank or ():
            if end & (end - 1):
                raise ValueError(f"rank holds {end}, which is no power of two")
        if self.alpha and self.alpha_over_rank:
            raise ValueError("give either alpha or alpha_over_rank, and null for the other")
        if self.targets is not None and not self.targets:
            raise ValueError("targets is empty; give choices, or null")
        if not wide:
            raise ValueError("the space is one point: widen a field")
        return self


class SearchPoint(Settings):
    """A point to try; what is left out is the stage's own."""

    rank: int | None = Field(None, ge=1, le=1024, description="as `train.lora.rank`")
    alpha: Finite | None = Field(None, gt=0, description="as `train.lora.alpha`")
    lr: Finite | None = Field(None, gt=0, description="as `train.optimizer.lr`")
    shift: Finite | None = Field(None, gt=0, description="as `train.flow.shift`")
    targets: Annotated[str | tuple[str, ...], BeforeValidator(adapter_targets)] | None = Field(
        None, description="as `train.lora.targets`"
    )


class TuneBudget(Settings):
    """How long the search goes on; more of it extends a study."""

    trials: int = Field(16, ge=1, description="points that are tried: the baseline, `points`, and drawn ones")
    hours: Finite | None = Field(None, gt=0, description="no trial starts after so long; null: no limit")


class HalvingSettings(Settings):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934) by the held-out loss.

    Trials are compared at `grace` steps, `factor` times as many, and so on. At each comparison the best one in `factor`
    of all that reached it go on. The baseline always does.
    """

    grace: int = Field(ge=1, description="steps that each trial trains")
    factor: int = Field(3, ge=2, description="of so many trials that reach a comparison one goes on")


class TuneSettings(Settings):
    """The search: a stage's training at many points, each scored on the val split."""

    train: TrainSettings = Field(description="the stage; as it stands it is the baseline, tried first")
    space: SearchSpace = SearchSpace()
    objectives: tuple[MetricName, MetricName] = Field(
        ("kvd", "lpips"), description=f"two of {', '.join(OBJECTIVES)}; both are minimised"
    )
    method: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="how points are drawn: tpe: Optuna's, multivariate; grid: each once, in a drawn order"
    )
    grid_values: int = Field(3, ge=2, description="values of each span in a grid, its ends among them; ranks: all")
    asha: HalvingSettings | None = Field(None, description="cuts trials by their held-out loss; null: none is cut")
    points: list[SearchPoint] = Field([], description="points to try after the baseline")
    baseline_seeds: int = Field(3, ge=1, description="trainings of the baseline; their spread is the noise")
    final_seeds: int = Field(
        3, ge=0, description="new trainings of the recommended point and of the baseline, compared on test; 0: none"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the points that are drawn")
    max_windows: int | None = Field(
        None, ge=1, description="at most so many windows of a split, one of each group before a second; default: all"
    )
    sampler: ValidationSampler = ValidationSampler()
    r_lpips_weights: str | None = runtime(
        None, description="file with the published state dict of R-LPIPS; the objective r_lpips needs it"
    )
    budget: TuneBudget = runtime(TuneBudget())
    concurrency: int | None = runtime(None, ge=1, description="trials at once; default: as many as the cluster holds")
    warm_start: list[str] = runtime(
        [],
        description="earlier studies in this storage with the same stage and scoring; the sampler knows their trials",
    )
    storage_url: str | None = runtime(
        None, description="Optuna's storage as an SQLAlchemy URL; default: a journal in the run's folder"
    )

    @model_validator(mode="after")
    def _two_objectives(self) -> TuneSettings:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"objectives holds {name!r}; known are {', '.join(OBJECTIVES)}")
        if len(set(self.objectives)) < 2:
            raise ValueError(f"objectives holds {self.objectives[0]!r} twice; give two different ones")
        if "r_lpips" in self.objectives and not self.r_lpips_weights:
            raise ValueError(
                "objectives holds r_lpips, whose published weights are in no package: set r_lpips_weights to the file "
                "(latest_net_linf_x0.pth of SaraGhazanfari/R-LPIPS), or search by lpips"
            )
        if self.asha is not None:
            _compares(self.asha, self.train)
        if self.train.mode != "lora":
            raise ValueError("train.mode is full, but what is searched is an adapter's shape: set it to lora")
        return self


def _compares(asha: HalvingSettings, train: TrainSettings) -> None:
    """Raise ValueError where halving would never compare: a loss is known with the checkpoint that follows it."""
    steps, every = train.optimizer.steps, train.validation.every
    first = math.ceil(asha.grace / every) * every
    known = math.ceil(first / train.checkpoint_every) * train.checkpoint_every
    if known >= steps:
        raise ValueError(
            f"asha.grace is {asha.grace}: the held-out loss that follows it is that of step {first}, known with the "
            f"checkpoint of step {known}, but training ends at step {steps}; lower asha.grace, "
            "train.validation.every or train.checkpoint_every"
        )


class TuneConfig(JobConfig, TuneSettings):
    """Each trial is a train run of its own, named `<study>-<hash of point and seed>`."""

    kind: ClassVar[str] = "tune"
    model: str = runtime("nano", description=MODEL)
    dataset: str = runtime(min_length=1, description=DATASET)


# --- publish, pipeline ---------------------------------------------------------------------------------------

ExportFormat = Literal["diffusers", "comfyui", "kohya"]


class PublishSettings(Settings):
    adapter_name: str = Field(pattern=NAME_PATTERN, description="name in the registry")
    version: str | None = Field(None, pattern=NAME_PATTERN, description="default: first 12 digits of the content hash")
    alias: str | None = Field("latest", pattern=NAME_PATTERN, description="moved to this version; null: none")
    exports: list[ExportFormat] = runtime([], description="files for other programs, in the run's folder")


class PublishConfig(JobConfig, PublishSettings):
    kind: ClassVar[str] = "publish"
    adapter: str = runtime(
        min_length=1, description="adapter folder, the name of a train run, or a LoRA file; its content counts"
    )


class PipelineConfig(JobConfig):
    """The whole path. Step S of pipeline P is the run `P-S`."""

    kind: ClassVar[str] = "pipeline"
    model: str = runtime("nano", description=MODEL)
    prepare: PrepareSettings
    style: TrainSettings
    motion: TrainSettings | None = Field(None, description="a second stage, on the adapter of the first; null: none")
    generate: GenerateSettings
    evaluate: EvaluateSettings = EvaluateSettings()
    publish: PublishSettings

    @model_validator(mode="before")
    @classmethod
    def _motion_is_its_stage(cls, values: Any) -> Any:
        motion = values.get("motion") if isinstance(values, Mapping) else None
        # One that says its targets has had them from the start: what is recorded of it stays.
        if not isinstance(motion, Mapping) or "stage" in motion or not _leaves_targets_to_stage(motion.get("lora", {})):
            return values
        return {**values, "motion": {**motion, "stage": "motion"}}

    @model_validator(mode="after")
    def _publishes_an_adapter(self) -> PipelineConfig:
        for name, settings in self.stages().items():
            if settings.mode != "lora":
                raise ValueError(
                    f"{name}.mode is {settings.mode!r}, but a pipeline publishes an adapter: set it to 'lora'"
                )
        if self.motion is not None and self.motion.parents:
            raise ValueError("motion.parents is the adapter of the style step, and those below it: leave it out")
        if self.generate.adapters or self.generate.arms:
            field = "adapters" if self.generate.adapters else "arms"
            raise ValueError(f"generate.{field} are what the steps before it trained: leave it out")
        if self.generate.split is None:
            raise ValueError(
                "generate.shots have no real videos that the step evaluate could compare them with: give "
                "generate.split (val or test) in their place, and make shots of the adapter with jobs.generate"
            )
        return self

    def steps(self) -> list[str]:
        """The steps, in order: the fields that hold a step's settings."""
        fields = [name for name in type(self).model_fields if name not in {*JobConfig.model_fields, "model"}]
        return [name for name in fields if getattr(self, name) is not None]

    def stages(self) -> dict[str, TrainSettings]:
        """The steps that train, in order."""
        return {name: step for name in self.steps() if isinstance(step := getattr(self, name), TrainSettings)}

    def arms(self) -> dict[str, list[str]]:
        """What is generated: arm name to the runs whose adapters it has."""
        if self.motion is None:
            return {"base": [], "adapter": [f"{self.name}-style"]}
        return {"base": [], "style": [f"{self.name}-style"], "style-motion": [f"{self.name}-motion"]}
