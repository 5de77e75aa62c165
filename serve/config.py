"""The configuration of the video service: which model, which sizes, how many engines, and where its state lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from sqlalchemy import URL, make_url

from cinesynth.errors import ConfigError
from cinesynth.generate.shape import GroupShape, check_group
from cinesynth.pool import Pool
from cinesynth.settings import NAME_PATTERN, Finite, Settings, Side, WindowFrames
from cinesynth.storage import Storage, check_lasting, sha256_json
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.wan.family import DEFAULT_FAMILY, Family, family_named
from cinesynth.wan.flops import video_flops
from cinesynth.wan.folder import model_folder, model_spec, read_json
from cinesynth.wan.kernels import Attention, Kernels
from serve.database import sqlite_file

Port = Annotated[int, Field(ge=1, le=65535)]


class SamplingDefaults(Settings):
    """The sampler's settings of a request that does not name them. The names are those of a request's fields."""

    num_inference_steps: int = Field(40, ge=1, le=1000, description="denoising steps")
    guidance_scale: Finite = Field(5.0, ge=0, description="1 or less: no classifier-free guidance, half the time")
    flow_shift: Finite | None = Field(None, gt=0, description="default: the model's own")
    negative_prompt: str = Field(
        DEFAULT_FAMILY.negative_prompt, max_length=2000, description="what guidance leads away from"
    )


class ImageLimits(Settings):
    """Bounds on the first frame that a client sends; those on its size are checked before it is decoded."""

    max_bytes: int = Field(20_000_000, ge=1, description="encoded size")
    max_side: int = Field(8192, ge=16, description="pixels")
    max_pixels: int = Field(40_000_000, ge=256, description="width times height")
    decode_s: Finite = Field(20.0, gt=0, description="seconds that decoding may take")
    decode_bytes: int = Field(2_000_000_000, ge=1_000_000, description="memory that decoding may take")


class UploadLimits(Settings):
    """Bounds on bodies while they arrive, so that slow clients keep nobody else waiting."""

    seconds: Finite = Field(60.0, gt=0, description="that a body may take to arrive, before 408")
    per_key: int = Field(4, ge=1, description="bodies that arrive at once with one key, before 429")
    at_once: int = Field(32, ge=1, description="bodies that arrive at once in all, before 503")


class GroupSettings(Settings):
    """The processes that make each video together, on one node. They divide a guided video's two forward passes first,
    then its tokens, as each request allows."""

    ranks: int = Field(1, ge=1, description="processes of an engine; they divide the model's attention heads")
    cpus_per_rank: Finite = Field(1.0, gt=0, description="CPUs of each")
    gpus_per_rank: int = Field(0, ge=0, le=1, description="GPUs of each")
    pool: Pool = Pool()
    strategy: Literal["auto", "replicate", "fsdp2"] = Field(
        "auto", description="how the base lies on the ranks; auto: a whole copy on each where the largest video fits"
    )
    attention: Attention = Field("auto", description="kernel of PyTorch's attention; auto: PyTorch chooses")
    compile: bool = Field(False, description="compile the blocks; with warm_up the first video does not wait for it")
    merge: bool = Field(False, description="add adapters to the weights, in place of computing them beside")

    @model_validator(mode="after")
    def _computable(self) -> GroupSettings:
        Kernels(self.attention, self.compile).check(bool(self.gpus_per_rank), self.ranks, self.strategy)
        return self


class EngineSettings(Settings):
    """The replicas that generate. Each makes one video at a time, with a group of processes."""

    min_replicas: int = Field(0, ge=0, description="0: none while there is no work")
    max_replicas: int = Field(1, ge=1, description="as many as there is work for, up to this")
    group: GroupSettings = GroupSettings()
    idle_s: Finite = Field(60.0, ge=0, description="seconds without work before a replica is taken away")
    drain_s: Finite | None = Field(
        None,
        ge=0,
        description="seconds to finish a video in, when a replica is taken away; default: of the longest predicted",
    )
    step_timeout_s: Finite = Field(
        600.0, gt=0, description="a process that gets nothing done for so long hangs, and the group is made anew"
    )
    load_s: Finite = Field(1800.0, gt=0, description="seconds that the processes may take to start and load the model")
    keep_every: int = Field(
        5, ge=0, description="denoising steps between two states, from which another engine goes on; 0: none is kept"
    )
    warm_up: bool = Field(True, description="make one step of a video before the first request is taken")

    @model_validator(mode="after")
    def _ordered(self) -> EngineSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self


class TransformerSettings(Settings):
    """The shape of the served transformer, as far as the work of a video depends on it."""

    num_layers: int = Field(ge=1, description="blocks")
    num_attention_heads: int = Field(ge=1, description="of each attention")
    attention_head_dim: int = Field(ge=1, description="width of a head")
    ffn_dim: int = Field(ge=1, description="width of the feed-forward layers")
    context_tokens: int = Field(ge=0, description="of text and image")


class IngressSettings(Settings):
    """The replicas that answer HTTP."""

    replicas: int = Field(1, ge=1, description="each has limits of its own on bodies and streams")
    slots: int = Field(10_000, ge=1, description="requests that a replica answers at once")


class ServeConfig(Settings):
    """The service: `python -m serve.run --config serve/config/nano.yaml`."""

    model: str = Field("nano", description="'nano', a hub id or a folder with a Wan image-to-video model")
    served_name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="the model as clients see it; default: its id, or its folder's",
    )
    family: str | None = Field(None, description="the model's family by name; default: as the model's files say")
    transformer: TransformerSettings | None = Field(
        None, description="of the model, to predict the work of a video by; default: as the model's files say"
    )
    storage: str = Field("storage", description="a folder that every node sees; adapters come from its registry")
    host: str = Field("127.0.0.1", description="address that the HTTP proxies bind")
    port: Port = Field(8000, description="of the HTTP proxies")
    sizes: list[tuple[Side, Side]] = Field(
        [DEFAULT_FAMILY.default_size[::-1]], min_length=1, description="[height, width]; first: default"
    )
    max_frames: WindowFrames = Field(
        DEFAULT_FAMILY.trained_frames, description="of the longest video that may be asked for"
    )
    default_frames: WindowFrames = Field(33, description="where a request gives neither seconds nor num_frames")
    defaults: SamplingDefaults = SamplingDefaults()
    max_steps: int = Field(100, ge=1, le=1000, description="num_inference_steps that a request may ask for")
    queue_cap: int = Field(100, ge=1, description="queued videos before 429")
    target_wait_s: Finite = Field(60.0, gt=0, description="seconds that the backlog may take; engines are added for it")
    assumed_job_s: Finite = Field(60.0, gt=0, description="predicted seconds of a video, until some are measured")
    ttl_s: Finite = Field(86_400.0, gt=0, description="seconds that a video is kept after it completed or failed")
    lease_s: Finite = Field(30.0, ge=5, description="without a heartbeat for so long, another engine takes the video")
    heartbeat_s: Finite = Field(1.0, gt=0, description="seconds between two heartbeats of an engine")
    max_attempts: int = Field(3, ge=1, description="attempts lost by themselves after which a video has failed")
    max_leases: int = Field(10, ge=1, description="times that a video is begun in all, lost nodes and drains included")
    min_free_bytes: int = Field(
        1_000_000_000, ge=0, description="with less room on the disk of storage no video is taken: 507, and not ready"
    )
    image: ImageLimits = ImageLimits()
    uploads: UploadLimits = UploadLimits()
    ingress: IngressSettings = IngressSettings()
    engine: EngineSettings = EngineSettings()
    reviews: str | None = Field(
        None, pattern=NAME_PATTERN, description="name below <storage>/reviews of the review that /review shows; or none"
    )
    keys_file: str | None = Field(None, description="made by python -m serve.keys; default: <storage>/serve/keys.json")
    database: str | None = Field(None, description="SQLAlchemy URL; default: SQLite at <storage>/serve/jobs.db")

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        if self.default_frames > self.max_frames:
            raise ValueError(f"default_frames {self.default_frames} exceeds max_frames {self.max_frames}")
        if self.defaults.num_inference_steps > self.max_steps:
            raise ValueError(
                f"defaults.num_inference_steps {self.defaults.num_inference_steps} exceeds max_steps {self.max_steps}"
            )
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError(f"lease_s {self.lease_s} must be at least twice heartbeat_s {self.heartbeat_s}")
        return self

    def home(self) -> Path:
        """The service's folder. Raises StorageError on an object store: SQLite and byte ranges need a file system."""
        return Storage.open(self.storage).child("serve").posix_path("serving (job database, first frames, videos)")

    def inputs(self) -> Path:
        """Folder of first frames."""
        return self.home() / "inputs"

    def results(self) -> Path:
        """Folder of finished videos."""
        return self.home() / "results"

    def states(self) -> Path:
        """Folder of the sampler states that unfinished videos go on from."""
        return self.home() / "states"

    def keys_path(self) -> Path:
        """The API keys file."""
        return Path(self.keys_file).expanduser() if self.keys_file else self.home() / "keys.json"

    def database_url(self) -> str:
        """The job database."""
        return self.database or URL.create("sqlite", database=os.fspath(self.home() / "jobs.db")).render_as_string()

    def model_name(self) -> str:
        """The model as clients see it: no folder of the server."""
        if self.served_name is not None:
            return self.served_name
        return Path(self.model).name if Path(self.model).is_absolute() else self.model

    def service(self) -> str:
        """Names the service by where its state lies, so that whoever asks a port can tell who answers there."""
        database = make_url(self.database_url()).render_as_string(hide_password=True)
        return sha256_json([self.storage, database, os.fspath(self.keys_path())])[:16]

    def shapes(self) -> list[dict[str, object]]:
        """The allowed shapes as error responses show them: size, frame counts, seconds."""
        family = self.model_family()
        frames = family.frame_counts(self.max_frames)
        seconds = [f"{family.seconds_of(n):g}" for n in frames]
        return [{"size": f"{w}x{h}", "num_frames": frames, "seconds": seconds} for h, w in self.sizes]

    def model_family(self) -> Family:
        """The family of the model. Raises ModelError where there is no such family, or no such model."""
        return model_spec(self.model).family if self.family is None else family_named(self.family)

    def flops(self, num_frames: int, height: int, width: int, steps: int, guided: bool) -> float:
        """Operations of a video's forward passes, the one measure of work of this service."""
        shape = self.transformer or transformer_of(self.model)
        return video_flops(self.model_family(), shape, shape.context_tokens, (num_frames, height, width), steps, guided)

    def largest_flops(self) -> float:
        """Those of the longest video that may be asked for."""
        return max(self.flops(self.max_frames, height, width, self.max_steps, True) for height, width in self.sizes)

    def bundles(self) -> list[dict[str, float]]:
        """What each process of an engine takes of its node."""
        shape, pool = self.group_shape(), self.engine.group.pool
        return [bundle | pool.resources(shape.gpus) for bundle in shape.bundles()]

    def group_shape(self) -> GroupShape:
        """What each engine's group is made of."""
        group = self.engine.group
        return GroupShape(
            self.model,
            group.ranks,
            group.cpus_per_rank,
            float(group.gpus_per_rank),
            Kernels(group.attention, group.compile),
            group.strategy,
            tuple((self.max_frames, height, width) for height, width in self.sizes),
            group.merge,
            quiet_s=self.engine.step_timeout_s,
            load_s=self.engine.load_s,
        )

    def resolved(self) -> ServeConfig:
        """The same configuration with absolute local paths, and the model's family and shape.

        Replicas run in other folders than the command line, and those of the API may be on nodes without the model.
        """
        storage = Storage.open(self.storage)
        update = {
            "storage": storage.uri if storage.is_local else self.storage,
            "keys_file": os.fspath(self.keys_path().absolute()),
            "database": _absolute(self.database_url()),
            "family": self.model_family().name,
            "transformer": self.transformer or transformer_of(self.model),
        }
        if Path(self.model).expanduser().is_dir():
            update["model"] = os.fspath(Path(self.model).expanduser().absolute())
        return self.model_copy(update=update)

    def check_inputs(self) -> None:
        """Raise CinesynthError where the service could not run with this configuration."""
        check_lasting(self.storage)
        if self.database is not None and (file := sqlite_file(self.database)) is not None:
            check_lasting(os.fspath(file), "database")
        self.home()
        path = self.keys_path()
        if not path.is_file():
            raise ConfigError(
                f"keys_file: {str(path)!r} does not exist; make a key with "
                f"`python -m serve.keys create --file {path} --name NAME`"
            )
        if self.reviews is not None:
            ReviewFolder.open(self.storage, self.reviews)
        spec = model_spec(self.model)
        check_group(self.engine.group.ranks, spec.heads, "engine.group.ranks")
        for height, width in self.sizes:
            for field in ("default_frames", "max_frames"):
                spec.check_size(getattr(self, field), height, width, f"sizes with {field}")


def transformer_of(model: str) -> TransformerSettings:
    """The shape of a model's transformer. Raises ModelError."""
    spec = model_spec(model)
    config = read_json(model_folder(model) / spec.family.experts[0] / "config.json", model)
    fields = {name: config[name] for name in TransformerSettings.model_fields if name in config}
    return TransformerSettings(**fields, context_tokens=spec.family.text_tokens + spec.image_tokens)


def _absolute(url: str) -> str:
    """An SQLite URL that means the same file from every folder."""
    file = sqlite_file(url)
    if file is None or file.is_absolute() or make_url(url).database != os.fspath(file):
        return url
    return make_url(url).set(database=os.fspath(file.absolute())).render_as_string(hide_password=False)
