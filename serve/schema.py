"""Requests and responses of the OpenAI video API, and how a request becomes a job.

Beside OpenAI's fields a request may have width and height, num_frames, fps, seed, num_inference_steps, guidance_scale,
negative_prompt, flow_shift and lora. An unknown field is an error.
"""

from __future__ import annotations

import math
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cinesynth.config import SamplerSettings
from cinesynth.settings import Finite, WindowFrames
from cinesynth.storage import sha256_json
from cinesynth.wan.family import DEFAULT_FAMILY
from serve.config import ServeConfig
from serve.errors import ApiError, invalid
from serve.jobs import Job, Status

MAX_PROMPT = 10_000
MAX_ADAPTERS = 8
"""Adapters of one video, those included that others were trained on top of."""


class InputReference(BaseModel):
    """The first frame in a JSON request."""

    model_config = ConfigDict(extra="forbid")
    image_url: str = Field(description="a data: URL in base64; links are not fetched")


class Prompted(BaseModel):
    """What says what happens in a video; the body of POST /v1/videos/{id}/remix."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank; say what happens in the video")
        return value


class CreateVideo(Prompted):
    """The body of POST /v1/videos, without the multipart file."""

    model: str | None = Field(None, max_length=300)
    seconds: Finite | None = Field(None, gt=0, le=86_400, description='number or string, as in "2"')
    size: str | None = Field(None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="WIDTHxHEIGHT")
    width: int | None = Field(None, ge=1, le=99_999, description="with height, in place of size")
    height: int | None = Field(None, ge=1, le=99_999, description="with width, in place of size")
    input_reference: InputReference | None = None
    num_frames: int | None = Field(None, ge=1, le=1_000_000)
    fps: int | None = Field(None, ge=1, le=1000)
    seed: int | None = Field(None, ge=0, lt=2**31, description="default: drawn, and recorded in the video")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: Finite | None = Field(None, ge=0, le=100)
    negative_prompt: str | None = Field(None, max_length=2000)
    flow_shift: Finite | None = Field(None, ge=0.01, le=100)
    lora: str | None = Field(
        None,
        min_length=1,
        max_length=2000,
        description="published adapters, in the order they are applied: NAME[@VERSION][:SCALE], separated by commas",
    )

    @model_validator(mode="after")
    def _one_size(self) -> CreateVideo:
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together, or size")
        asked = f"{self.width}x{self.height}"
        if self.width is not None and self.size not in (None, asked):
            raise ValueError(f"size {self.size} and width x height {asked} differ; give one of them")
        return self


class ServedAdapter(BaseModel):
    """An adapter of a video."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ref: str
    """Immutable `name@version`."""
    sha256: str
    """Over the adapter's files, as its registry entry says; empty where a job of an older version does not say."""
    scale: float = 1.0


class JobRequest(BaseModel):
    """What an engine needs to make a video. Every default is filled in, so that it is recorded."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    base_sha256: str = ""
    """Hash of the transformer that was served when the video was asked for; jobs of older versions do not say it."""
    prompt: str
    num_frames: WindowFrames
    height: int
    width: int
    fps: int = DEFAULT_FAMILY.fps
    """Requests of versions with one family do not say it."""
    sampler: SamplerSettings
    adapters: list[ServedAdapter] = []
    """In the order in which they are applied; one that was trained on top of others comes after them."""
    work: float = 0.0
    """Operations of its forward passes; 0: not known, as of a job of an older version."""

    @model_validator(mode="before")
    @classmethod
    def _one_adapter(cls, values: Any) -> Any:
        """Jobs of older versions have one adapter, or none."""
        if not isinstance(values, dict) or not {"adapter", "adapter_sha256"} & set(values):
            return values
        values = dict(values)
        ref, sha256 = values.pop("adapter", None), values.pop("adapter_sha256", None)
        return {**values, "adapters": [{"ref": ref, "sha256": sha256 or ""}] if ref else []}

    def adapters_key(self) -> str | None:
        """The same for jobs with the same adapters, at most 170 characters; None for the base model."""
        if not self.adapters:
            return None
        first = self.adapters[0]
        if len(self.adapters) == 1 and first.scale == 1:
            return first.ref
        return "chain-" + sha256_json([[a.ref, a.scale] for a in self.adapters])[:32]

    def lora(self) -> str | None:
        """The adapters as the field `lora` of a request names them; None for the base model."""
        parts = [a.ref if a.scale == 1 else f"{a.ref}:{a.scale!r}".removesuffix(".0") for a in self.adapters]
        return ",".join(parts) or None


class VideoError(BaseModel):
    code: str
    message: str


class Video(BaseModel):
    """A video, and how far it is."""

    id: str
    object: Literal["video"] = "video"
    model: str
    prompt: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    error: VideoError | None = None
    seed: int = Field(description="also where the request gave none")
    lora: str | None = Field(
        None, description="as a request writes it, with all that is applied: versions, scales, and those below others"
    )
    num_inference_steps: int
    guidance_scale: float


def video(job: Job) -> Video:
    """The response that shows a job."""
    request = JobRequest.model_validate(job.request)
    return Video(
        id=job.id,
        model=request.model,
        prompt=request.prompt,
        status=job.status,
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=None if job.expires_at is None else int(job.expires_at),
        seconds=f"{(request.num_frames - 1) / request.fps:g}",
        size=f"{request.width}x{request.height}",
        remixed_from_video_id=job.remixed_from,
        error=VideoError(code=job.error_code, message=job.error_message or "") if job.error_code else None,
        seed=request.sampler.seed,
        lora=request.lora(),
        num_inference_steps=request.sampler.steps,
        guidance_scale=request.sampler.guidance_scale,
    )


class VideoList(BaseModel):
    """A page of one owner's videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Defaults(BaseModel):
    """What a request gets that does not say otherwise."""

    size: str
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float | None
    negative_prompt: str


class Model(BaseModel):
    """The served model, in OpenAI's shape, and what may be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cinesynth"
    sizes: list[str]
    num_frames: list[int]
    fps: int
    max_steps: int
    defaults: Defaults


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def served_model(config: ServeConfig, created: int) -> Model:
    """The model as clients see it; `created`: since when it is served."""
    family = config.model_family()
    sizes = [f"{width}x{height}" for height, width in config.sizes]
    defaults = Defaults(size=sizes[0], num_frames=config.default_frames, **config.defaults.model_dump())
    return Model(
        id=config.model_name(),
        created=created,
        sizes=sizes,
        num_frames=family.frame_counts(config.max_frames),
        fps=family.fps,
        max_steps=config.max_steps,
        defaults=defaults,
    )


def parse_create(fields: dict[str, Any]) -> CreateVideo:
    """Validate a body's fields. Raises ApiError 400 that names each bad one."""
    reference = fields.get("input_reference")
    if isinstance(reference, dict) and "file_id" in reference:
        message = (
            "files are not kept here: send the first frame itself, as a multipart file or in image_url as a data: URL"
        )
        raise ApiError(400, "not_supported", f"input_reference.file_id: {message}", "input_reference.file_id")
    try:
        return CreateVideo.model_validate(fields)
    except ValidationError as e:
        raise invalid(e) from None


def parse_remix(fields: dict[str, Any]) -> Prompted:
    """Validate the fields of a remix. Raises ApiError 400 that names each bad one."""
    try:
        return Prompted.model_validate(fields)
    except ValidationError as e:
        raise invalid(e) from None


def remix(request: JobRequest, prompt: str, config: ServeConfig) -> JobRequest:
    """A job's request with another prompt. Raises ApiError 400 where the service no longer makes such videos."""
    given = {
        "prompt": prompt,
        "model": request.model,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "num_inference_steps": request.sampler.steps,
    }
    resolve(parse_create(given), config)
    guided = request.sampler.guidance_scale > 1
    work = config.flops(request.num_frames, request.height, request.width, request.sampler.steps, guided)
    return request.model_copy(update={"prompt": prompt, "work": work})


def resolve(request: CreateVideo, config: ServeConfig) -> JobRequest:
    """Fill in defaults, and check the request against what is served. The adapter is resolved elsewhere.

    A request for some seconds gets fps x seconds + 1 frames: the first frame, then the seconds.

    Raises ApiError 400. For a size or length that is not served, it holds the table of those that are.
    """
    name = config.model_name()
    if request.model not in (None, name):
        raise ApiError(400, "model_not_served", f"model {request.model!r} is not served; use {name!r}", "model")
    fps = config.model_family().fps
    if request.fps not in (None, fps):
        raise ApiError(400, "invalid_value", f"fps {request.fps}: the model makes {fps} frames a second", "fps")
    steps = request.num_inference_steps or config.defaults.num_inference_steps
    if steps > config.max_steps:
        raise ApiError(
            400, "invalid_value", f"num_inference_steps {steps}: at most {config.max_steps}", "num_inference_steps"
        )
    height, width = _size(request, config)
    num_frames, guidance_scale = _frames(request, config), _or(request.guidance_scale, config.defaults.guidance_scale)
    return JobRequest(
        model=name,
        prompt=request.prompt,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        sampler=SamplerSettings(
            steps=steps,
            guidance_scale=guidance_scale,
            flow_shift=_or(request.flow_shift, config.defaults.flow_shift),
            negative_prompt=_or(request.negative_prompt, config.defaults.negative_prompt),
            seed=_or(request.seed, secrets.randbelow(2**31)),
        ),
        work=config.flops(num_frames, height, width, steps, guidance_scale > 1),
    )


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _size(request: CreateVideo, config: ServeConfig) -> tuple[int, int]:
    size = request.size if request.width is None else f"{request.width}x{request.height}"
    if size is None:
        return config.sizes[0]
    width, height = (int(n) for n in size.split("x"))
    if (height, width) not in config.sizes:
        raise _shape_error(config, f"size {size!r} is not served", "width" if request.size is None else "size")
    return height, width


def _frames(request: CreateVideo, config: ServeConfig) -> int:
    family = config.model_family()
    if request.seconds is not None and request.num_frames is not None:
        raise _shape_error(config, "give seconds or num_frames, not both", "num_frames")
    if request.num_frames is not None:
        wanted, given, param = float(request.num_frames), f"num_frames {request.num_frames}", "num_frames"
    elif request.seconds is not None:
        wanted = family.frames_of(request.seconds)
        given, param = f"seconds {request.seconds:g} ({family.fps} x seconds + 1 = {wanted:g} frames)", "seconds"
    else:
        return config.default_frames
    if not math.isclose(wanted, round(wanted), abs_tol=1e-9) or round(wanted) not in family.frame_counts(
        config.max_frames
    ):
        allowed = f"{family.frame_rule}, from {family.least_frames} to {config.max_frames}"
        raise _shape_error(config, f"{given}: frames must be {allowed}", param)
    return round(wanted)


def _shape_error(config: ServeConfig, reason: str, param: str) -> ApiError:
    table = config.shapes()
    allowed = "; ".join(f"{row['size']} with {row['num_frames']} frames" for row in table)
    return ApiError(400, "shape_not_allowed", f"{reason}. Allowed: {allowed}", param, extra={"allowed_shapes": table})
