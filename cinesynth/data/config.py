"""The configuration of `prepare`: from footage to a clips dataset."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cinesynth.errors import ConfigError
from cinesynth.pool import LABELS, Labels, Pool
from cinesynth.settings import NAME_PATTERN, Finite, Gpus, Settings, WindowFrames, runtime, side_steps
from cinesynth.wan.family import DEFAULT_FAMILY, FAMILIES, ModelSpec, Size, size_tables

log = logging.getLogger(__name__)

Backend = Literal["pyav", "decord", "torchcodec"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class FootageSource(Settings):
    """Footage of one kind: a folder (searched recursively), a file, a glob, a list, or a prefix of a bucket."""

    path: str = Field(
        description="local path or glob; .csv, .jsonl or .parquet list; s3:// or gs:// prefix; "
        "`package:MODULE/PATH`: inside an installed Python package"
    )
    domain: str = Field("default", pattern=NAME_PATTERN, description="free tag; splits are drawn within a domain")
    caption: str | None = Field(None, max_length=10_000, description="default for files without a sidecar caption")


class DecodeSettings(Settings):
    """How frames are read."""

    backend: Backend = runtime("pyav", description="the library that decodes")
    limit_s: Finite = runtime(60.0, gt=0, description="seconds without a frame after which a file is given up")
    cache_gb: Finite = runtime(20.0, gt=0, description="on each node, for files of a bucket")

    @property
    def cache_bytes(self) -> float:
        """Size of the cache on each node."""
        return self.cache_gb * 1e9


def _sizes(value: object) -> object:
    """A table's name, 'WIDTHxHEIGHT', or a list of the latter, as a list of pairs."""
    if isinstance(value, str) and value in (tables := size_tables()):
        return [f"{width}x{height}" for width, height in tables[value]]
    return [value] if isinstance(value, str) else value


def _size(value: str) -> str:
    width, x, height = value.partition("x")
    known = x and width.isdigit() and height.isdigit()
    if not known or not any(f.takes_side(int(width)) and f.takes_side(int(height)) for f in FAMILIES.values()):
        tables = ", ".join(size_tables())
        raise ValueError(f"is a table ({tables}) or WIDTHxHEIGHT in multiples of {side_steps()}, such as 832x480")
    return value


def _fps(value: int) -> int:
    if value not in (rates := sorted({family.fps for family in FAMILIES.values()})):
        raise ValueError(f"must be {' or '.join(map(str, rates))}: what the model was trained at")
    return value


def _lengths(value: object) -> object:
    return [value] if isinstance(value, int) else value


class WindowSettings(Settings):
    """The windows of each shot, and their buckets (size and length).

    A shot is filled from its start with the longest windows that fit, and its rest with the next shorter ones.
    """

    num_frames: Annotated[list[WindowFrames], BeforeValidator(_lengths)] = Field(
        [33], min_length=1, description=f"{DEFAULT_FAMILY.frame_rule}; one length, or several"
    )
    sizes: Annotated[list[Annotated[str, AfterValidator(_size)]], BeforeValidator(_sizes)] = Field(
        ["{}x{}".format(*DEFAULT_FAMILY.default_size)],
        min_length=1,
        description="480p, 720p, or WIDTHxHEIGHT (one or several); a window gets that which fits",
    )
    fps: Annotated[int, AfterValidator(_fps)] = Field(DEFAULT_FAMILY.fps, description="that of the model")
    stride: int | None = Field(
        None, ge=1, description="frames (at `fps`) between the starts of two windows; default: their length"
    )
    max_per_shot: int | None = Field(None, ge=1, description="keep at most this many windows of a shot, from its start")
    max_upscale: Finite = Field(1.25, ge=1, description="most that a picture is enlarged, as a factor")
    crop_centre: tuple[Share, Share] = Field((0.5, 0.5), description="(0, 0) keeps the top left of a picture")
    black_bars: Literal["crop", "keep"] = Field("crop", description="keep: they are part of the picture")

    def size_pairs(self) -> list[Size]:
        """(width, height) of each size."""
        return [(int(w), int(h)) for w, _, h in (size.partition("x") for size in self.sizes)]

    def check_model(self, spec: ModelSpec) -> None:
        """Raise ConfigError for a length, size or rate that the model does not have."""
        if self.fps != spec.family.fps:
            raise ConfigError(f"window.fps = {self.fps}: {spec.family.title} makes {spec.family.fps} frames a second")
        for width, height in self.size_pairs():
            for num_frames in self.num_frames:
                spec.check_size(num_frames, height, width, "window")


class ShotSettings(Settings):
    """Cut detection: PySceneDetect's content, adaptive or hash detector, or TransNetV2."""

    detector: Literal["content", "adaptive", "hash", "transnet", "none"] = Field(
        "content", description="transnet needs cinesynth[transnet]; none: every file is one shot"
    )
    threshold: Finite | None = Field(None, gt=0, description="on the detector's own scale; default: its own")


class Range(Settings):
    """The values that a score may have, both ends included."""

    min: Finite | None = Field(None, description="lowest that is kept; default: no bound")
    max: Finite | None = Field(None, description="highest that is kept; default: no bound")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


Score = Literal["motion", "blur", "luma", "clipped", "static", "bars", "upscale", "interlaced", "text", "aesthetic"]


class DuplicateSettings(Settings):
    """Shots that show nearly the same, across the whole dataset."""

    action: Literal["link", "drop", "keep"] = Field(
        "link", description="link: into one group, so that no split divides them; drop: all but the first"
    )
    distance: int = Field(7, ge=0, le=7, description="bits of 64 in which two perceptual hashes may differ")
    share: Finite = Field(0.5, gt=0, le=1, description="of the shorter shot's different pictures that must be alike")


class SplitSettings(Settings):
    """Shares of the groups that are held out; a group is assigned by a hash of its id within its domain."""

    val: Finite = Field(0.1, ge=0, lt=1, description="share of the groups for validation")
    test: Finite = Field(0.1, ge=0, lt=1, description="share of the groups for evaluation")
    salt: str = Field("", description="another salt divides the groups in another way")

    @model_validator(mode="after")
    def _some_training(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test = {self.val + self.test} leaves nothing to train on; keep their sum below 1")
        return self


class StageResources(Settings):
    """One stage on the cluster."""

    workers: int = Field(1, ge=1, description="actors")
    cpus: Finite = Field(1.0, gt=0, description="of each worker")
    gpus: Gpus = Field(0.0, ge=0, description="of each worker")


class DecodeResources(Settings):
    """Decoding of windows while others are encoded; files are hashed and scanned before that, on all CPUs."""

    workers: int | None = Field(
        None, ge=1, description="default: as there is room for when encoding starts, at most 8 for one of vae"
    )
    cpus: Finite = Field(1.0, gt=0, description="of each worker")
    labels: Labels = Field(
        {},
        description=f"{LABELS}: where files are hashed, scanned and decoded; default: windows are decoded where "
        "they are encoded, and files are hashed and scanned on any node",
    )


class CaptionerSettings(Settings):
    """An image-text-to-text model of transformers that captions what has no caption of its own."""

    model: str | None = Field(None, description="hub id or folder; none: the default caption stands")
    prompt: str = Field(
        "Describe this shot of a film in one sentence: what is seen, and how the camera moves.",
        description="what the model is asked",
    )
    max_tokens: int = Field(96, ge=1, le=1024, description="longest caption")
    frames: int = Field(3, ge=1, le=16, description="pictures of a window that the model is shown")


class PrepareResources(Pool):
    """The stages' resources, and the nodes that encode."""

    decode: DecodeResources = DecodeResources()
    vae: StageResources = StageResources()
    clip: StageResources = StageResources()
    text: StageResources = StageResources()
    models: StageResources = Field(StageResources(), description="text overlay, aesthetic score and captions")

    def readers(self) -> Pool:
        """The nodes that hash and scan files."""
        return Pool(labels=self.decode.labels)

    def decoders(self) -> Pool:
        """The nodes that decode windows."""
        return self.readers() if self.decode.labels else self


_DECODERS = 8  # so many keep one VAE worker busy


def fitted(resources: PrepareResources, cluster: Mapping[str, float]) -> PrepareResources:
    """The resources, with no more CPUs than the cluster has: a stage that asks for more would wait for ever.

    Encoding needs the workers of `vae`, `clip` and `decode` at the same time; `text` and `models` run by themselves.
    GPUs are not lowered: a cluster that grows may still get them.
    """
    changed: dict[str, Any] = {}
    cpus = cluster.get("CPU", 0.0)
    for together in (("vae", "clip", "decode"), ("text",), ("models",)):
        stages = {name: getattr(resources, name) for name in together}
        needed = sum((stage.workers or 1) * stage.cpus for stage in stages.values())
        if cpus and needed > cpus:
            log.info("%s: %g CPUs asked for, the cluster has %g: less is taken", " + ".join(together), needed, cpus)
            less = {name: _down(stage.cpus * cpus / needed) for name, stage in stages.items()}
            stages = {name: stage.model_copy(update={"cpus": less[name]}) for name, stage in stages.items()}
        gpus = sum(stage.workers * stage.gpus for stage in stages.values() if isinstance(stage, StageResources))
        if gpus > cluster.get("GPU", 0.0):
            log.warning(
                "%s: %g GPUs asked for, the cluster has %g: this waits until there are more",
                *(" + ".join(together), gpus, cluster.get("GPU", 0.0)),
            )
        changed |= stages
    decode = changed["decode"]
    if decode.workers is None:
        room = cpus - sum(changed[name].workers * changed[name].cpus for name in ("vae", "clip"))
        workers = min(int(room / decode.cpus + 1e-9), _DECODERS * changed["vae"].workers)
        changed["decode"] = decode.model_copy(update={"workers": max(1, workers)})
    return resources.model_copy(update=changed)


def _down(cpus: float) -> float:
    return max(0.01, math.floor(cpus * 100) / 100)


class PrepareSettings(Settings):
    """Footage to a clips dataset."""

    footage: list[FootageSource] = runtime(min_length=1, description="may grow: only what is new is encoded")
    decode: DecodeSettings = runtime(DecodeSettings())
    window: WindowSettings = WindowSettings()
    shots: ShotSettings = ShotSettings()
    filters: dict[Score, Range] = Field({}, description="windows whose score lies outside are left out")
    detect_text: bool = Field(False, description="score `text`; needs cinesynth[text]")
    aesthetic: str | None = Field(None, description="folder with CLIP and predictor weights: score `aesthetic`")
    captioner: CaptionerSettings = CaptionerSettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    split: SplitSettings = SplitSettings()
    group_by: Literal["source", "shot"] = Field("source", description="what is never divided between splits")
    caption: str = Field("a video", max_length=10_000, description="where neither a sidecar nor the source has one")
    trigger: str = Field("", max_length=200, description="phrase put before every caption")
    vae_dtype: Literal["fp32", "bf16"] = Field("fp32", description="that latents are computed in")
    resources: PrepareResources = runtime(PrepareResources())
    shard_mb: Finite = runtime(256.0, gt=0, description="a shard is committed when it has so many MB")
    shard_s: Finite = runtime(60.0, gt=0, description="or when its first window has waited so long")
