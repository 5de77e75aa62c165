"""The HTTP interface: its routes, and who may ask. It knows nothing of Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response, Security
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer

from cinesynth.errors import ConfigError
from cinesynth.registry import Registry
from serve import pages
from serve.adapters import AdapterList
from serve.auth import Key, KeyRing, Scope
from serve.config import ServeConfig
from serve.content import Variant
from serve.describe import (
    answer_body,
    clip_responses,
    content_responses,
    create_body,
    described,
    event_responses,
    remix_body,
)
from serve.errors import ApiError, error_responses, install
from serve.jobs import Job, Jobs
from serve.request_id import request_log
from serve.reviews import KeptAnswer, Review, Reviews
from serve.schema import DeletedVideo, Model, ModelList, Video, VideoList, video
from serve.videos import Videos

logger = request_log(__name__)

router = APIRouter()

KEY_CHECKS = 8
"""Threads that look keys up. They are of their own: whatever holds the others, keys are answered for."""

_INSTEAD = {
    "/v1/videos/edits": "videos are not edited: POST /v1/videos/{id}/remix makes one again with another prompt",
    "/v1/videos/extensions": "videos are not extended: send the last frame as input_reference of a new one",
    "/v1/videos/characters": "characters are not kept: send a picture of the character as input_reference",
    "/v1/files": "files are not kept: send the first frame as the multipart file input_reference, or as a data: URL",
}


def create_api(
    config: ServeConfig,
    jobs: Jobs,
    keys: KeyRing,
    registry: Registry,
    base_sha256: str,
    echo_request_id: bool = True,
    release: str = "",
) -> FastAPI:
    """The application with all routes.

    Args:
        config, jobs, registry, base_sha256: as of `Videos`.
        keys: of those who may ask.
        echo_request_id: whether answers get the header `X-Request-Id` here. Ray Serve's proxy adds it by itself.
        release: names what was deployed.
    """
    api = FastAPI(title="cinesynth", docs_url=None, redoc_url=None)
    api.state.keys = keys
    api.state.key_checks = CapacityLimiter(KEY_CHECKS)
    api.state.release = release
    api.state.videos = Videos(config, jobs, registry, base_sha256)
    api.state.reviews = Reviews(config)
    install(api, echo_request_id)
    api.include_router(router)
    api.include_router(pages.router)
    api.openapi = described(api.openapi)  # type: ignore[method-assign]
    return api


async def _key(request: Request, _: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> Key:
    state, given = request.app.state, request.headers.get("authorization")
    try:
        key = await to_thread.run_sync(state.keys.key, given, limiter=state.key_checks)
    except ConfigError as e:
        logger.error("%s", e)
        message = "the keys cannot be read; the server's operator has to mend the file"
        raise ApiError(503, "keys_unreadable", message, headers={"Retry-After": "30"}) from e
    if key is None:
        message = "send a valid key: Authorization: Bearer KEY"
        raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
    return key


AnyKey = Annotated[Key, Depends(_key)]


async def _videos_key(key: AnyKey) -> Key:
    return _with_scope(key, "videos", "videos need")


async def _review_key(key: AnyKey) -> Key:
    return _with_scope(key, "review", "a review needs")


def _with_scope(key: Key, scope: Scope, needs: str) -> Key:
    if scope not in key.scopes:
        message = f"this key has the scopes {', '.join(key.scopes)}; {needs} a key with the scope {scope}"
        raise ApiError(403, "scope_missing", message)
    return key


async def _videos(request: Request) -> Videos:
    return request.app.state.videos


async def _reviews(request: Request) -> Reviews:
    return request.app.state.reviews


VideosKey = Annotated[Key, Depends(_videos_key)]
ReviewKey = Annotated[Key, Depends(_review_key)]
Operations = Annotated[Videos, Depends(_videos)]
ReviewOperations = Annotated[Reviews, Depends(_reviews)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="printable ASCII of your choice: a request that is sent again with it makes no second video",
    ),
]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=error_responses(500, 503, 507))
async def readyz(request: Request, videos: Operations) -> dict[str, str]:
    """The job table answers and there is room, so that requests can be taken; `service` names who answers, and
    `release` which code and configuration."""
    await videos.ready()
    return {"status": "ready", "service": videos.config.service(), "release": request.app.state.release}


@router.get("/v1/models", responses=error_responses(401, 500, 503))
async def list_models(_: AnyKey, videos: Operations) -> ModelList:
    """The one model that is served, with what may be asked of it."""
    return ModelList(data=[videos.model()])


@router.get("/v1/models/{model:path}", responses=error_responses(401, 404, 500, 503))
async def retrieve_model(model: str, _: AnyKey, videos: Operations) -> Model:
    """The model that is served."""
    served = videos.model()
    if model != served.id:
        raise ApiError(404, "model_not_found", f"no model {model!r}; {served.id!r} is served", "model")
    return served


@router.get("/v1/adapters", responses=error_responses(401, 403, 500, 503))
async def list_adapters(_: VideosKey, videos: Operations) -> AdapterList:
    """The adapters that `lora` may name: those of the served base."""
    return await videos.adapters.listed()


@router.post(
    "/v1/videos",
    openapi_extra={"requestBody": create_body()},
    responses=error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 507),
)
async def create_video(
    request: Request, response: Response, key: VideosKey, videos: Operations, idempotency_key: IdempotencyKey = None
) -> Video:
    """Queue a video. The body is multipart/form-data with the file `input_reference`, or JSON with a data URL."""
    return await _shown(await videos.create(request, key, idempotency_key), response, videos)


@router.get("/v1/videos", responses=error_responses(400, 401, 403, 404, 500, 503))
async def list_videos(
    key: VideosKey,
    videos: Operations,
    after: Annotated[str | None, Query(description="id of the last video of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by creation; desc: newest first")] = "desc",
) -> VideoList:
    """The key's videos, page by page."""
    return await videos.page(key, after, limit, order == "desc")


@router.post("/v1/videos/edits", include_in_schema=False)
@router.post("/v1/videos/extensions", include_in_schema=False)
@router.post("/v1/videos/characters", include_in_schema=False)
@router.get("/v1/videos/characters/{rest}", include_in_schema=False)
@router.api_route("/v1/files", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v1/files/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def refuse(request: Request, _: AnyKey) -> Response:
    """Routes of OpenAI's API that are not offered: says what to do in place of them."""
    path = request.url.path
    raise ApiError(404, "not_supported", next(told for prefix, told in _INSTEAD.items() if path.startswith(prefix)))


@router.get("/v1/videos/{video_id}", responses=error_responses(401, 403, 404, 500, 503))
async def retrieve_video(video_id: str, response: Response, key: VideosKey, videos: Operations) -> Video:
    """A video's status and progress."""
    return await _shown(await videos.look(video_id, key), response, videos)


@router.delete("/v1/videos/{video_id}", responses=error_responses(401, 403, 404, 500, 503))
async def delete_video(video_id: str, key: VideosKey, videos: Operations) -> DeletedVideo:
    """Delete a video and its files. One that is being made stops at its next step."""
    return await videos.delete(video_id, key)


@router.post(
    "/v1/videos/{video_id}/remix",
    openapi_extra={"requestBody": remix_body()},
    responses=error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 507),
)
async def remix_video(
    video_id: str,
    request: Request,
    response: Response,
    key: VideosKey,
    videos: Operations,
    idempotency_key: IdempotencyKey = None,
) -> Video:
    """Queue a video of the same first frame and settings, the seed included, with another prompt."""
    return await _shown(await videos.remix(video_id, request, key, idempotency_key), response, videos)


@router.head("/v1/videos/{video_id}/content", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/v1/videos/{video_id}/content",
    response_class=FileResponse,
    responses={**content_responses(), **error_responses(400, 401, 403, 404, 409, 416, 500, 503, 507)},
)
async def video_content(
    video_id: str, key: VideosKey, videos: Operations, variant: Annotated[Variant, Query()] = "video"
) -> FileResponse:
    """The finished MP4, its first frame (WebP) or a sheet of up to 16 frames (JPEG); byte ranges work."""
    return await videos.content(video_id, key, variant)


@router.get(
    "/v1/videos/{video_id}/events",
    response_class=Response,
    responses={**event_responses(), **error_responses(401, 403, 404, 429, 500, 503)},
)
async def video_events(
    video_id: str,
    key: VideosKey,
    videos: Operations,
    last_event_id: Annotated[str | None, Header(description="of the event that was told last")] = None,
) -> Response:
    """A video's course: an event whenever its status, progress or place in the queue changes, until it has ended."""
    return await videos.events(video_id, key, last_event_id)


@router.get("/v1/review", responses=error_responses(401, 403, 404, 409, 500, 503, 507))
async def retrieve_review(key: ReviewKey, reviews: ReviewOperations) -> Review:
    """The open review as this key's rater sees it: questions, and the items in their order with what was answered. The
    first request takes a place in the review."""
    return await reviews.shown(key)


@router.put(
    "/v1/review/answers/{item}",
    openapi_extra={"requestBody": answer_body()},
    responses=error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 507),
)
async def answer_item(item: str, request: Request, key: ReviewKey, reviews: ReviewOperations) -> KeptAnswer:
    """Keep the rater's answer to an item. The same one again changes nothing, another one replaces it."""
    return await reviews.answer(item, request, key)


@router.head("/v1/review/videos/{clip}", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/v1/review/videos/{clip}",
    response_class=FileResponse,
    responses={**clip_responses(), **error_responses(400, 401, 403, 404, 409, 416, 500, 503, 507)},
)
async def review_video(clip: str, key: ReviewKey, reviews: ReviewOperations) -> FileResponse:
    """The MP4 of one of the rater's items, by its opaque name; byte ranges work."""
    return await reviews.video(clip, key)


async def _shown(job: Job, response: Response, videos: Videos) -> Video:
    """The video, and in the headers when to ask again."""
    after = await videos.poll_after_ms(job)
    if after is not None:
        response.headers["openai-poll-after-ms"] = str(after)
    return video(job)
