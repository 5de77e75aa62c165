"""The operations of a review: what a rater sees, and how answers are kept. No answer tells which arm made a video.

Answers lie in the review's folder, an object each, not in the job table: they are kept for good and analysed without
the service, while the table belongs to the Dispatcher, which deletes its rows after a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cinesynth.errors import StorageError
from cinesynth.settings import Finite
from cinesynth.studies.review.config import Format
from cinesynth.studies.review.folder import ReviewFolder
from serve.auth import Key
from serve.bodies import Uploads, read_object
from serve.config import ServeConfig
from serve.content import Content
from serve.errors import NO_RETRY, ApiError, clipped, disk_errors, invalid
from serve.request_id import request_log

logger = request_log(__name__)


class ReviewQuestion(BaseModel):
    """What is asked of each item."""

    name: str
    text: str
    hint: str
    low: str = Field(description="what 1 means, on scales")
    high: str = Field(description="what 5 means, on scales")


class ReviewItem(BaseModel):
    """What is shown at once: `videos` are opaque names, left (A) and right (B), or one on scales."""

    id: str
    videos: list[str]
    width: int
    height: int
    fps: float
    caption: str
    answers: dict[str, str] | None = Field(description="what this rater answered, by question")


class Review(BaseModel):
    """A review as one rater sees it."""

    object: Literal["review"] = "review"
    title: str
    instructions: str
    format: Format
    choices: list[str]
    questions: list[ReviewQuestion]
    items: list[ReviewItem]


class ReviewAnswer(BaseModel):
    """The body of PUT /v1/review/answers/{item}."""

    model_config = ConfigDict(extra="forbid")
    answers: dict[str, str] = Field(description="a choice for each question")
    seconds: Finite = Field(0.0, ge=0, le=86_400, description="that the item was seen")
    plays: int = Field(0, ge=0, le=100_000, description="how often its videos began")


class KeptAnswer(BaseModel):
    """What stands after an answer was kept."""

    object: Literal["review.answer"] = "review.answer"
    item: str
    answers: dict[str, str]
    changes: int = Field(description="how often it was changed")


class Reviews:
    """The open review, where there is one. Each operation sees the items of the key's rater only.

    Args:
        config: resolved configuration.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._uploads = Uploads(config.uploads)
        self._opened: ReviewFolder | None = None
        self._places: dict[str, int] = {}

    def check_open(self) -> str:
        """The open review's name. Raises ApiError 404 where there is none."""
        if self.config.reviews is None:
            raise ApiError(404, "no_review", "no review is open here; the server's operator opens one with `reviews`")
        return self.config.reviews

    async def shown(self, key: Key) -> Review:
        """The review as this rater sees it. Raises ApiError (404, 409 when all places are taken)."""
        review = await self._review()
        return await asyncio.to_thread(self._shown, review, key.owner)

    async def answer(self, item: str, request: Request, key: Key) -> KeptAnswer:
        """Keep an answer. Raises ApiError: 404 for an item that is not this rater's, 400 for answers that are none."""
        review = await self._review()
        async with self._uploads.slot(key.owner) as deadline, deadline:
            fields = await read_object(request)
        try:
            given = ReviewAnswer.model_validate(fields)
        except ValidationError as e:
            raise invalid(e) from e
        return await asyncio.to_thread(self._keep, review, key.owner, item, given)

    async def video(self, name: str, key: Key) -> Content:
        """A video of one of the rater's items, in a response that answers byte ranges. Raises ApiError 404."""
        review = await self._review()
        place = await asyncio.to_thread(self._place, review, key.owner)
        shown = {video for item in review.design.sequences[place] for video in review.design.items[item].videos}
        path = review.video(name) if name in shown else None
        none = ApiError(404, "not_found", f"this rater's items have no video {clipped(name)!r}", "clip")
        if path is None:
            raise none
        return Content(path, none, "video/mp4", f"{name}.mp4", content_disposition_type="inline")

    async def _review(self) -> ReviewFolder:
        name = self.check_open()
        if self._opened is None:  # a design never changes
            try:
                self._opened = await asyncio.to_thread(ReviewFolder.open, self.config.storage, name)
            except StorageError as e:
                logger.error("%s", e)
                raise ApiError(404, "no_review", "the review that should be open here is not there") from e
        return self._opened

    def _place(self, review: ReviewFolder, rater: str) -> int:
        if rater not in self._places:
            with disk_errors():
                place = review.place_of(rater)
            if place is None:
                message = f"all {len(review.design.sequences)} places of this review are taken"
                raise ApiError(409, "review_full", message, headers=NO_RETRY)
            self._places[rater] = place
        return self._places[rater]

    def _shown(self, review: ReviewFolder, rater: str) -> Review:
        design, place = review.design, self._place(review, rater)
        answered = review.answers(place)
        items = []
        for name in design.sequences[place]:
            window = design.window_of(name)
            items.append(
                ReviewItem(
                    id=name,
                    videos=list(design.items[name].videos),
                    width=window.width,
                    height=window.height,
                    fps=window.fps,
                    caption=window.caption,
                    answers=answered[name].answers if name in answered else None,
                )
            )
        return Review(
            title=design.title,
            instructions=design.instructions,
            format=design.format,
            choices=list(design.choices),
            questions=[
                ReviewQuestion(name=q.name, text=q.text, hint=q.hint, low=q.low, high=q.high) for q in design.questions
            ],
            items=items,
        )

    def _keep(self, review: ReviewFolder, rater: str, item: str, given: ReviewAnswer) -> KeptAnswer:
        design, place = review.design, self._place(review, rater)
        if item not in design.sequences[place]:
            raise ApiError(404, "not_found", f"this rater has no item {clipped(item)!r}", "item")
        asked = {question.name for question in design.questions}
        if given.answers.keys() != asked:
            told = ", ".join(sorted(clipped(name) for name in asked ^ given.answers.keys())[:3])
            raise ApiError(400, "invalid_value", f"answers: each question needs one, and no other: {told}", "answers")
        for question, choice in given.answers.items():
            if choice not in design.choices:
                message = f"answers.{question}: {clipped(choice)!r} is none of {', '.join(design.choices)}"
                raise ApiError(400, "invalid_value", message, "answers")
        with disk_errors():
            kept = review.put(place, item, given.answers, given.seconds, given.plays, time.time())
        return KeptAnswer(item=item, answers=kept.answers, changes=kept.changes)
