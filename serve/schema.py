"""Requests and responses of the OpenAI video API, and how a request becomes a job.

Beside OpenAI's fields a request may have num_frames, fps, seed, num_inference_steps, guidance_scale, negative_prompt,
flow_shift and lora. An unknown field is an error.
"""

from __future__ import annotations

import math
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cinesynth.config import SamplerSettings
from cinesynth.settings import Finite, WindowFrames
from cinesynth.wan.family import DEFAULT_FAMILY
from serve.config import ServeConfig
from serve.errors import ApiError, invalid
from serve.jobs import Job, Status

MAX_PROMPT = 10_000


class InputReference(BaseModel):
    """The first frame in a JSON request."""

    model_config = ConfigDict(extra="forbid")
    image_url: str = Field(description="a data: URL in base64; links are not fetched")


class CreateVideo(BaseModel):
    """The body of POST /v1/videos, without the multipart file."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    model: str | None = None
    seconds: Finite | None = Field(None, gt=0, le=86_400, description='number or string, as in "2"')
    size: str | None = Field(None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="WIDTHxHEIGHT")
    input_reference: InputReference | None = None
    num_frames: int | None = Field(None, ge=1, le=1_000_000)
    fps: int | None = Field(None, ge=1, le=1000)
    seed: int | None = Field(None, ge=0, lt=2**31, description="default: drawn, and recorded in the video")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: Finite | None = Field(None, ge=0, le=100)
    negative_prompt: str | None = Field(None, max_length=2000)
    flow_shift: Finite | None = Field(None, ge=0.01, le=100)
    lora: str | None = Field(None, min_length=1, max_length=200, description="published adapter, name@version or alias")

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank; say what happens in the video")
        return value


def request_body() -> dict[str, Any]:
    """The two bodies of POST /v1/videos, for the API's description."""
    described = CreateVideo.model_json_schema()
    reference = described.pop("$defs")["InputReference"]
    described["required"] = ["prompt", "input_reference"]
    described["properties"]["input_reference"] = reference
    file = {"type": "string", "format": "binary", "description": "the first frame: JPEG, PNG or WebP"}
    form = {**described, "properties": {**described["properties"], "input_reference": file}}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": described}}
    return {"required": True, "content": content}


class JobRequest(BaseModel):
    """What an engine needs to make a video. Every default is filled in, so that it is recorded."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    prompt: str
    num_frames: WindowFrames
    height: int
    width: int
    fps: int = DEFAULT_FAMILY.fps
    """Requests of versions with one family do not say it."""
    sampler: SamplerSettings
    adapter: str | None = None
    """Immutable `name@version`."""
    adapter_sha256: str | None = None

    @property
    def work(self) -> float:
        """Relative cost: pixels x frames x forward passes, without the quadratic part of attention."""
        passes = self.sampler.steps * (2 if self.sampler.guidance_scale > 1 else 1)
        return float(self.height * self.width * self.num_frames * passes)


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
        error=VideoError(code=job.error_code, message=job.error_message or "") if job.error_code else None,
    )


def parse_create(fields: dict[str, Any]) -> CreateVideo:
    """Validate a body's fields. Raises ApiError 400 that names each bad one."""
    try:
        return CreateVideo.model_validate(fields)
    except ValidationError as e:
        raise invalid(e) from None


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
    return JobRequest(
        model=name,
        prompt=request.prompt,
        num_frames=_frames(request, config),
        height=height,
        width=width,
        fps=fps,
        sampler=SamplerSettings(
            steps=steps,
            guidance_scale=_or(request.guidance_scale, config.defaults.guidance_scale),
            flow_shift=_or(request.flow_shift, config.defaults.flow_shift),
            negative_prompt=_or(request.negative_prompt, config.defaults.negative_prompt),
            seed=_or(request.seed, secrets.randbelow(2**31)),
        ),
    )


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _size(request: CreateVideo, config: ServeConfig) -> tuple[int, int]:
    if request.size is None:
        return config.sizes[0]
    width, height = (int(n) for n in request.size.split("x"))
    if (height, width) not in config.sizes:
        raise _shape_error(config, f"size {request.size!r} is not served", "size")
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
