"""The pages `/studio` and `/review`: files that talk to the API of the same server, and to nobody else."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.errors import ApiError

Page = Literal["studio", "review"]

FOLDERS: dict[Page, Path] = {"studio": Path(__file__).parent / "studio", "review": Path(__file__).parent / "review"}

PAGE = "index.html"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""No script or style but those of the folders, no other server, no frame around it, and no text that becomes markup.
Pictures and videos come from `blob:`, as a page fetches them with the key."""

HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag: another version is never mixed in
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

router = APIRouter(include_in_schema=False)


@router.api_route("/studio", methods=["GET", "HEAD"])
async def studio(request: Request) -> Response:
    """The page where videos are made."""
    return _file(request, "studio", PAGE)


@router.api_route("/studio/{name}", methods=["GET", "HEAD"])
async def studio_file(request: Request, name: str) -> Response:
    """A file of that page. Raises ApiError 404."""
    return _file(request, "studio", name)


@router.api_route("/review", methods=["GET", "HEAD"])
async def review(request: Request) -> Response:
    """The page where raters compare videos. Raises ApiError 404 while no review is open."""
    request.app.state.reviews.check_open()
    return _file(request, "review", PAGE)


@router.api_route("/review/{name}", methods=["GET", "HEAD"])
async def review_file(request: Request, name: str) -> Response:
    """A file of that page. Raises ApiError 404."""
    return _file(request, "review", name)


def _file(request: Request, page: Page, name: str) -> Response:
    found = _files(page).get(name)
    if found is None:
        raise ApiError(404, "not_found", f"/{page} has no file {name!r}")
    content, etag = found
    headers = {**HEADERS, "ETag": etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=TYPES[Path(name).suffix])


@cache
def _files(page: Page) -> dict[str, tuple[bytes, str]]:
    """Each file's bytes and ETag by its name. Read once: they belong to the version of the code."""
    contents = {path.name: path.read_bytes() for path in FOLDERS[page].iterdir() if path.suffix in TYPES}
    return {name: (content, f'"{hashlib.sha256(content).hexdigest()[:32]}"') for name, content in contents.items()}
