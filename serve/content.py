"""What a finished video is given out as: its MP4, a picture of its first frame, and a sheet of its frames.

The pictures are made when they are first asked for, and kept beside the MP4 under its name, so that they go with it.
"""

from __future__ import annotations

import asyncio
import io
import math
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import numpy as np
from fastapi.responses import FileResponse
from PIL import Image
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from cinesynth.data.video import inspect_video, read_frames
from cinesynth.errors import MediaError
from serve.errors import ApiError
from serve.media import write_whole
from serve.threads import in_thread

Variant = Literal["video", "thumbnail", "spritesheet"]

MEDIA_TYPES: dict[Variant, str] = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}
SHEET_FRAMES = 16
SHEET_SIDE = 320
"""Most pixels of a frame's longer side on a sheet."""

_SUFFIXES: dict[Variant, str] = {"video": "", "thumbnail": ".thumbnail.webp", "spritesheet": ".spritesheet.jpg"}
_NAMES: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".jpg"}


class Content(FileResponse):
    """A file, whose refusals have the shape of the other errors: of byte ranges, and where it is deleted meanwhile.

    Args:
        path: of the file.
        gone: the answer where there is none.
        media_type, filename, content_disposition_type: as of `FileResponse`.

    Raises `gone`.
    """

    def __init__(
        self, path: Path, gone: ApiError, media_type: str, filename: str, content_disposition_type: str = "attachment"
    ) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise gone from None
        self.gone = gone
        super().__init__(
            path,
            media_type=media_type,
            filename=filename,
            stat_result=status,
            content_disposition_type=content_disposition_type,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: ApiError | None = None
        start: Message | None = None  # is sent when the file is open

        async def shaped(message: Message) -> None:
            nonlocal refused, start
            if message["type"] == "http.response.start":
                if message["status"] in (400, 416):
                    refused = _bad_range(scope, message)
                start = message
            elif refused is None:
                if start is not None:
                    await send(start)
                    start = None
                await send(message)

        try:
            await super().__call__(scope, receive, shaped)
        except FileNotFoundError:
            refused = self.gone
        if refused is not None:
            await refused.response()(scope, receive, send)


def _bad_range(scope: Scope, start: Message) -> ApiError:
    """The refusal in place of the one that the message begins."""
    size = dict(start["headers"]).get(b"content-range", b"").decode()
    headers = {"Content-Range": size} if size else None
    told = f"Range {Headers(scope=scope).get('range')!r}: give bytes=FIRST-LAST within the file"
    return ApiError(start["status"], "invalid_range", told, "Range", headers=headers)


class Contents:
    """The files of finished videos; one picture is made at a time."""

    def __init__(self) -> None:
        self._making = asyncio.Lock()

    async def response(self, result: Path, video_id: str, variant: Variant) -> Content:
        """The answer that holds a variant of a finished video.

        Args:
            result: the MP4.
            video_id: its name for the client.
            variant: of it.

        Raises ApiError 404 where the file is gone.
        """
        path = result.with_name(result.name + _SUFFIXES[variant])
        if not path.is_file() and result.is_file():
            async with AsyncExitStack() as held:
                await held.enter_async_context(self._making)
                if not path.is_file() and result.is_file():  # while this one waited, it was made, or the video deleted
                    try:
                        await in_thread(held, _make, result, path, variant)
                    except MediaError:
                        if result.is_file():
                            raise  # else it was deleted while it was read
        gone = ApiError(404, "expired", f"the content of {video_id} is no longer kept")
        if not result.is_file():
            if variant != "video":
                path.unlink(missing_ok=True)
            raise gone
        return Content(path, gone, MEDIA_TYPES[variant], video_id + _NAMES[variant])


def _make(result: Path, path: Path, variant: Variant) -> None:
    data = io.BytesIO()
    if variant == "thumbnail":
        Image.fromarray(read_frames(result, [0])[0]).save(data, "WEBP", quality=85)
    else:
        num_frames = inspect_video(result).num_frames
        wanted = np.linspace(0, num_frames - 1, min(SHEET_FRAMES, num_frames)).round().astype(int).tolist()
        sprite_sheet([Image.fromarray(frame) for frame in read_frames(result, wanted)]).save(data, "JPEG", quality=85)
    write_whole(data.getvalue(), path)
    if not result.is_file():  # deleted meanwhile: its picture goes, too
        path.unlink(missing_ok=True)


def sprite_sheet(frames: list[Image.Image]) -> Image.Image:
    """Frames of one size row by row, as near to a square number of them as can be, each at most `SHEET_SIDE` long."""
    columns = math.ceil(math.sqrt(len(frames)))
    shrunk = min(1.0, SHEET_SIDE / max(frames[0].size))
    width, height = (max(1, round(side * shrunk)) for side in frames[0].size)
    sheet = Image.new("RGB", (columns * width, math.ceil(len(frames) / columns) * height))
    for n, frame in enumerate(frames):
        sheet.paste(
            frame.resize((width, height), Image.Resampling.LANCZOS), (n % columns * width, n // columns * height)
        )
    return sheet
