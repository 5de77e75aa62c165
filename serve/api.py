"""The HTTP interface: who may ask, which requests are valid, and what is answered. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from PIL import Image
from starlette.datastructures import Headers, UploadFile
from starlette.types import Message, Receive, Scope, Send

from cinesynth.errors import AdapterError, ConfigError
from cinesynth.pictures import crop_to
from cinesynth.registry import Published, Registry
from serve.auth import KeyRing
from serve.config import ServeConfig, UploadLimits
from serve.errors import ApiError, error_responses, install
from serve.jobs import Job, Jobs, JobStore, NewJob, QueueFull
from serve.media import ImageRefused, data_url_bytes, read_image, save_image
from serve.schema import CreateVideo, Video, parse_create, request_body, resolve, video

logger = logging.getLogger(__name__)

READY_S = 1.0
"""Seconds that an answer to whether requests can be taken holds, so that a flood of questions costs nothing."""

NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's client not to ask again by itself."""

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
        self._uploads = Uploads(config.uploads)
        self._ready_until = 0.0
        self._decoding = asyncio.Semaphore(2)  # an image takes megabytes while it is decoded

    async def create(self, request: Request, owner: str) -> Video:
        """Validate the request, then queue the video. Raises ApiError (400, 404, 408, 413, 415, 429, 503, 507)."""
        video_id = f"video_{secrets.token_hex(16)}"
        image = self.config.inputs() / f"{video_id}.png"
        async with self._uploads.slot(owner) as deadline:  # until the body, which may be large, is no longer held
            async with deadline:
                body, data = await read_body(request, self.config)
            job = resolve(body, self.config)
            if body.lora is not None:
                found = await asyncio.to_thread(self._adapter, body.lora)
                job = job.model_copy(update={"adapter": found.ref, "adapter_sha256": found.sha256})
            async with self._decoding:
                await asyncio.to_thread(self._keep_image, data, image, job.height, job.width)
            del data
        fields = job.model_dump(mode="json")
        new = NewJob(video_id, owner, fields, job.adapter, image.name, job.work)
        try:
            created = await self.jobs(JobStore.create, new)
        except ApiError as e:
            if e.code != "unavailable":
                raise
            # The table may still take it. One that asks again blindly would get two videos.
            message = f"the job table does not answer; ask for {video_id}, which may be queued, before you try again"
            raise ApiError(503, "outcome_unknown", message, headers=NO_RETRY) from e
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
        """The finished MP4, in a response that answers byte ranges. Raises ApiError (400, 404, 409)."""
        if variant != "video":
            raise ApiError(400, "invalid_value", f"variant {variant!r}: only 'video' is made", "variant")
        job = await self.job(video_id, owner)
        if job.status == "failed":
            message = f"{video_id} failed ({job.error_code}): {job.error_message}"
            raise ApiError(409, "failed", message, headers=NO_RETRY)
        if job.status != "completed" or job.result is None:
            message = f"{video_id} is {job.status} ({job.progress} %); ask again when completed"
            raise ApiError(409, "not_ready", message, headers=NO_RETRY)
        path = self.config.results() / job.result
        if not path.is_file():
            raise ApiError(404, "expired", f"the content of {video_id} is no longer kept")
        return Content(path, media_type="video/mp4", filename=f"{video_id}.mp4")

    async def ready(self) -> None:
        """Find out whether requests can be taken, at most once a second. Raises ApiError (503, 507)."""
        now = asyncio.get_running_loop().time()
        if now < self._ready_until:
            return
        await self.jobs(JobStore.backlog)
        if shutil.disk_usage(self.config.inputs()).free < 2 * self.config.image.max_bytes:
            raise _disk_full()
        self._ready_until = now + READY_S

    def _adapter(self, ref: str) -> Published:
        try:
            found = self.registry.resolve(ref)
        except AdapterError as e:
            logger.info("lora %r: %s", ref, e)  # the log may name the others
            message = f"no published adapter {ref!r}; give name@version or name@alias"
            raise ApiError(404, "adapter_not_found", message, "lora") from e
        base = found.card.get("base_sha256")
        if base not in (None, self.base_sha256):
            raise ApiError(
                400,
                "adapter_mismatch",
                f"{found.ref} was trained on base {str(base)[:12]}, not on the served {self.base_sha256[:12]}",
                "lora",
            )
        if found.card.get("parents"):
            message = f"{found.ref} was trained on top of other adapters; only one adapter is applied here"
            raise ApiError(400, "adapter_mismatch", message, "lora")
        return found

    def _keep_image(self, data: bytes, path: Path, height: int, width: int) -> None:
        """Keep the first frame in the video's size, as the generator would crop it: a photograph takes megabytes."""
        try:
            frame = crop_to(read_image(data, self.config.image), height, width)
            save_image(Image.fromarray(frame), path)
        except ImageRefused as e:
            raise _image_error(e) from e
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full() from e


class Content(FileResponse):
    """A file, whose refusals of byte ranges have the shape of the other errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: ApiError | None = None

        async def shaped(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                size = dict(message["headers"]).get(b"content-range", b"").decode()
                headers = {"Content-Range": size} if size else None
                given = Headers(scope=scope).get("range")
                told = f"Range {given!r}: give bytes=FIRST-LAST within the file"
                refused = ApiError(message["status"], "invalid_range", told, "Range", headers=headers)
            elif refused is None:
                await send(message)

        await super().__call__(scope, receive, shaped)
        if refused is not None:
            await refused.response()(scope, receive, send)


class Uploads:
    """Slots of bodies that are arriving, each for some seconds only.

    Args:
        limits: how many, and for how long.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self._of: Counter[str] = Counter()

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[AbstractAsyncContextManager[Any]]:
        """A slot for a body of this owner; gives what bounds its arrival. Raises ApiError (408, 429, 503)."""
        limits = self.limits
        if self._of[owner] >= limits.per_key:
            message = f"{limits.per_key} requests of this key are arriving; wait for one of them"
            raise ApiError(429, "too_many_uploads", message, headers={"Retry-After": "1"})
        if self._of.total() >= limits.at_once:
            message = f"{limits.at_once} requests are arriving; try again"
            raise ApiError(503, "too_many_uploads", message, headers={"Retry-After": "5"})
        self._of[owner] += 1
        try:
            yield asyncio.timeout(limits.seconds)
        except TimeoutError as e:
            message = f"the body did not arrive within {limits.seconds:g} s"
            headers = {**NO_RETRY, "Connection": "close"}
            raise ApiError(408, "body_timeout", message, headers=headers) from e
        finally:
            self._of[owner] -= 1
            self._of += Counter()  # drops those at zero


router = APIRouter()


def create_api(config: ServeConfig, jobs: Jobs, keys: KeyRing, registry: Registry, base_sha256: str) -> FastAPI:
    """The application with all routes. `keys` are of those who may ask; the other arguments are those of `Videos`."""
    api = FastAPI(title="cinesynth", docs_url=None, redoc_url=None)
    api.state.keys = keys
    api.state.videos = Videos(config, jobs, registry, base_sha256)
    install(api)
    api.include_router(router)
    describe = api.openapi

    def described() -> dict[str, Any]:
        """Without the 422 of FastAPI's own, which is answered as 400 here."""
        document = describe()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    api.openapi = described  # type: ignore[method-assign]
    return api


def _owner(request: Request, _: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> str:
    try:
        name = request.app.state.keys.owner(request.headers.get("authorization"))
    except ConfigError as e:
        logger.error("%s", e)
        message = "the keys cannot be read; the server's operator has to mend the file"
        raise ApiError(503, "keys_unreadable", message, headers={"Retry-After": "30"}) from e
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


@router.get("/readyz", responses=error_responses(503, 507))
async def readyz(videos: Operations) -> dict[str, str]:
    """The job table answers and there is room, so that requests can be taken; `service` names who answers."""
    await videos.ready()
    return {"status": "ready", "service": videos.config.service()}


@router.post(
    "/v1/videos",
    openapi_extra={"requestBody": request_body()},
    responses=error_responses(400, 401, 404, 408, 413, 415, 429, 500, 503, 507),
)
async def create_video(request: Request, owner: Owner, videos: Operations) -> Video:
    """Queue a video. The body is multipart/form-data with the file `input_reference`, or JSON with a data URL."""
    return await videos.create(request, owner)


@router.get("/v1/videos/{video_id}", responses=error_responses(401, 404, 500, 503))
async def retrieve_video(video_id: str, owner: Owner, videos: Operations) -> Video:
    """A video's status and progress."""
    return video(await videos.job(video_id, owner))


@router.head("/v1/videos/{video_id}/content", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/v1/videos/{video_id}/content",
    response_class=FileResponse,
    responses={
        200: {"content": {"video/mp4": {}}, "description": "the whole file"},
        206: {"content": {"video/mp4": {}}, "description": "a range of bytes"},
        **error_responses(400, 401, 404, 409, 416, 500, 503),
    },
)
async def video_content(video_id: str, owner: Owner, videos: Operations, variant: str = "video") -> FileResponse:
    """The finished MP4; byte ranges work."""
    return await videos.content(video_id, owner, variant)


# --- reading a body ------------------------------------------------------------------------------------------


async def read_body(request: Request, config: ServeConfig) -> tuple[CreateVideo, bytes]:
    """The validated fields, and the first frame's bytes as they were sent.

    Raises ApiError: 413 as soon as too many bytes have arrived, 415 for another content type, 400 for bad fields.
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
                raise ApiError(400, "invalid_value", f"{name}: is given twice", name)
            fields[name] = value
        upload = fields.pop("input_reference", None)
        for name, value in fields.items():
            if isinstance(value, UploadFile):
                raise ApiError(400, "invalid_value", f"{name}: is not a file field", name)
        body = parse_create(fields)
        if not isinstance(upload, UploadFile):
            raise _no_image("as a file")
        return body, await upload.read(config.image.max_bytes + 1)


async def _read_json(request: Request, config: ServeConfig) -> tuple[CreateVideo, bytes]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as e:
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {e}") from e
    if not isinstance(fields, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
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
    return ApiError(400, "missing", f"input_reference: the first frame is required, {how}", "input_reference")


def _disk_full() -> ApiError:
    message = "the server's disk is full; its operator has to make room"
    return ApiError(507, "insufficient_storage", message, headers=NO_RETRY)


def _image_error(error: ImageRefused) -> ApiError:
    status, code = (413, "too_large") if error.too_large else (400, "invalid_image")
    return ApiError(status, code, f"input_reference: {error}", "input_reference")
