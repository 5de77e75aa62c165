"""The HTTP interface: who may ask, which requests are valid, and what is answered. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile
from starlette.types import Message

from cinesynth.errors import AdapterError
from cinesynth.registry import Published, Registry
from serve.auth import KeyRing
from serve.config import ServeConfig
from serve.errors import ApiError, install
from serve.jobs import Job, Jobs, JobStore, NewJob, QueueFull
from serve.media import ImageRefused, data_url_bytes, read_image, save_image
from serve.schema import CreateVideo, Video, parse_create, resolve, video

FORM_BYTES = 256_000
"""Most bytes of a request's body beside the image: the other fields and the multipart framing."""


class Videos:
    """The operations behind the routes.

    Args:
        config: resolved configuration.
        jobs: runs the operations of the job table.
        registry: published adapters.
        base_sha256: hash of the served transformer. An adapter of another base is refused.
    """

    def __init__(self, config: ServeConfig, jobs: Jobs, registry: Registry, base_sha256: str) -> None:
        self.config, self.jobs, self.registry, self.base_sha256 = config, jobs, registry, base_sha256
        self._decoding = asyncio.Semaphore(2)  # an image takes megabytes while it is decoded

    async def create(self, request: Request, owner: str) -> Video:
        """Validate the request, then queue the video. Raises ApiError (404, 413, 415, 422, 429)."""
        body, data = await read_body(request, self.config)
        job = resolve(body, self.config)
        if body.lora is not None:
            found = await asyncio.to_thread(self._adapter, body.lora)
            job = job.model_copy(update={"adapter": found.ref, "adapter_sha256": found.sha256})
        video_id = f"video_{secrets.token_hex(16)}"
        image = self.config.inputs() / f"{video_id}.png"
        async with self._decoding:
            await asyncio.to_thread(self._keep_image, data, image)
        fields = job.model_dump(mode="json")
        new = NewJob(video_id, owner, fields, job.adapter, image.name, job.work)
        created = await self.jobs(JobStore.create, new)
        if isinstance(created, QueueFull):
            image.unlink(missing_ok=True)
            headers = {"Retry-After": str(created.retry_after_s)}
            message = f"{self.config.queue_cap} videos are queued; try again later"
            raise ApiError(429, "queue_full", message, headers=headers)
        return video(created)

    async def job(self, video_id: str, owner: str) -> Job:
        """The owner's job. Raises ApiError 404 when there is none, or it is another owner's."""
        job = await self.jobs(JobStore.get, video_id)
        if job is None or job.owner != owner:
            raise ApiError(404, "not_found", f"no video {video_id!r}", "id")
        return job

    async def content(self, video_id: str, owner: str, variant: str) -> FileResponse:
        """The finished MP4, in a response that answers byte ranges. Raises ApiError (404, 409, 422)."""
        if variant != "video":
            raise ApiError(422, "invalid_value", f"variant {variant!r}: only 'video' is made", "variant")
        job = await self.job(video_id, owner)
        if job.status == "failed":
            raise ApiError(409, "failed", f"{video_id} failed ({job.error_code}): {job.error_message}")
        if job.status != "completed" or job.result is None:
            raise ApiError(409, "not_ready", f"{video_id} is {job.status} ({job.progress} %); ask again when completed")
        path = self.config.results() / job.result
        if not path.is_file():
            raise ApiError(404, "expired", f"the content of {video_id} is no longer kept")
        return FileResponse(path, media_type="video/mp4", filename=f"{video_id}.mp4")

    def _adapter(self, ref: str) -> Published:
        try:
            found = self.registry.resolve(ref)
        except AdapterError as e:
            raise ApiError(404, "adapter_not_found", str(e), "lora") from e
        base = found.card.get("base_sha256")
        if base not in (None, self.base_sha256):
            raise ApiError(
                422,
                "adapter_mismatch",
                f"{found.ref} was trained on base {str(base)[:12]}, not on the served {self.base_sha256[:12]}",
                "lora",
            )
        if found.card.get("parents"):
            message = f"{found.ref} was trained on top of other adapters; only one adapter is applied here"
            raise ApiError(422, "adapter_mismatch", message, "lora")
        return found

    def _keep_image(self, data: bytes, path: Path) -> None:
        try:
            save_image(read_image(data, self.config.image), path)
        except ImageRefused as e:
            raise _image_error(e) from e


router = APIRouter()


def create_api(config: ServeConfig, jobs: Jobs, keys: KeyRing, registry: Registry, base_sha256: str) -> FastAPI:
    """The application with all routes. `keys` are of those who may ask; the other arguments are those of `Videos`."""
    api = FastAPI(title="cinesynth", docs_url=None, redoc_url=None)
    api.state.keys = keys
    api.state.videos = Videos(config, jobs, registry, base_sha256)
    install(api)
    api.include_router(router)
    return api


def _owner(request: Request) -> str:
    name = request.app.state.keys.owner(request.headers.get("authorization"))
    if name is None:
        message = "send a valid key: Authorization: Bearer KEY"
        raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
    return name


def _videos(request: Request) -> Videos:
    return request.app.state.videos


Owner = Annotated[str, Depends(_owner)]
Operations = Annotated[Videos, Depends(_videos)]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(videos: Operations) -> dict[str, str]:
    """The job table answers, so that requests can be taken."""
    await videos.jobs(JobStore.backlog)
    return {"status": "ready"}


@router.post("/v1/videos")
async def create_video(request: Request, owner: Owner, videos: Operations) -> Video:
    """Queue a video. The body is multipart/form-data with the file `input_reference`, or JSON with a data URL."""
    return await videos.create(request, owner)


@router.get("/v1/videos/{video_id}")
async def retrieve_video(video_id: str, owner: Owner, videos: Operations) -> Video:
    """A video's status and progress."""
    return video(await videos.job(video_id, owner))


@router.get("/v1/videos/{video_id}/content", response_class=FileResponse)
async def video_content(video_id: str, owner: Owner, videos: Operations, variant: str = "video") -> FileResponse:
    """The finished MP4; byte ranges work."""
    return await videos.content(video_id, owner, variant)


# --- reading a body ------------------------------------------------------------------------------------------


async def read_body(request: Request, config: ServeConfig) -> tuple[CreateVideo, bytes]:
    """The validated fields, and the first frame's bytes as they were sent.

    Raises ApiError: 413 as soon as too many bytes have arrived, 415 for another content type, 422 for bad fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(_capped(request, config.image.max_bytes + FORM_BYTES), config)
    if kind == "application/json":
        return await _read_json(_capped(request, config.image.max_bytes * 4 // 3 + FORM_BYTES), config)
    raise ApiError(415, "unsupported_media_type", f"content type {kind!r}: use multipart/form-data or application/json")


async def _read_form(request: Request, config: ServeConfig) -> tuple[CreateVideo, bytes]:
    async with request.form(max_files=1, max_fields=64, max_part_size=FORM_BYTES) as form:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise ApiError(422, "invalid_value", f"{name}: is given twice", name)
            fields[name] = value
        upload = fields.pop("input_reference", None)
        for name, value in fields.items():
            if isinstance(value, UploadFile):
                raise ApiError(422, "invalid_value", f"{name}: is not a file field", name)
        body = parse_create(fields)
        if not isinstance(upload, UploadFile):
            raise _no_image("as a file")
        return body, await upload.read(config.image.max_bytes + 1)


async def _read_json(request: Request, config: ServeConfig) -> tuple[CreateVideo, bytes]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as e:
        raise ApiError(422, "invalid_json", f"the body is not valid JSON: {e}") from e
    if not isinstance(fields, dict):
        raise ApiError(422, "invalid_json", "the body must be a JSON object")
    body = parse_create(fields)
    if body.input_reference is None:
        raise _no_image('{"image_url": "data:image/png;base64,..."}')
    try:
        return body, data_url_bytes(body.input_reference.image_url, config.image)
    except ImageRefused as e:
        raise _image_error(e) from e


def _capped(request: Request, limit: int) -> Request:
    """The same request, whose body raises ApiError 413 when more than `limit` bytes of it are read."""
    error = ApiError(413, "too_large", f"the request is larger than {limit:,} bytes", "input_reference")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise error
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise error
        return message

    return Request(request.scope, receive)


def _no_image(how: str) -> ApiError:
    return ApiError(422, "missing", f"input_reference: the first frame is required, {how}", "input_reference")


def _image_error(error: ImageRefused) -> ApiError:
    status, code = (413, "too_large") if error.too_large else (422, "invalid_image")
    return ApiError(status, code, f"input_reference: {error}", "input_reference")
