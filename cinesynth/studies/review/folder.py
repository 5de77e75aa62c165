"""A review's folder: its design, its videos, who took which place, and the answers.

Each answer is an object of its own, `answers/<place>/<item>.json`, written whole. So it is idempotent by (rater, item),
needs neither append nor database, goes with the folder, and several processes may write at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cinesynth.errors import StorageError
from cinesynth.settings import Finite
from cinesynth.storage import Storage
from cinesynth.studies.review.design import SCHEMA, Design

DESIGN = "design.json"
_NAME = re.compile(r"[0-9a-f]{32}")


class Given(BaseModel):
    """A rater's answer to an item.

    Attributes:
        answers: question to choice.
        seconds: that the item was seen before it was answered, as the page measured them.
        plays: how often the videos began.
        first_at, answered_at: seconds since 1970, of the first answer and of the one that stands.
        changes: how often the answer was changed afterwards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    answers: dict[str, str]
    seconds: Finite = 0.0
    plays: int = 0
    first_at: float
    answered_at: float
    changes: int = 0


def review_location(storage: str, name: str) -> Storage:
    """The folder `<storage>/reviews/<name>`. Raises StorageError on an object store, which serves no byte ranges."""
    folder = Storage.open(storage).child("reviews", name)
    folder.posix_path("a review (its videos are served by byte ranges)")
    return folder


class ReviewFolder:
    """A review that was designed.

    Args:
        folder: of the review.
        design: as read from it.
    """

    def __init__(self, folder: Storage, design: Design) -> None:
        self.folder, self.design = folder, design

    @classmethod
    def open(cls, storage: str, name: str) -> ReviewFolder:
        """The review of this name. Raises StorageError, listing those that there are, when there is none."""
        folder = review_location(storage, name)
        if not folder.exists(DESIGN):
            reviews = Storage.open(storage)
            known = [n for n in reviews.folders("reviews") if reviews.exists(f"reviews/{n}/{DESIGN}")]
            raise StorageError(
                f"there is no review {name!r} in {reviews.uri}; there are: {', '.join(known) or 'none'}; make one with "
                "`python -m cinesynth.studies.review design`"
            )
        found = folder.read_json(DESIGN)
        if found.get("schema_version") != SCHEMA:
            told = f"has schema {found.get('schema_version')!r}, and this version of cinesynth reads {SCHEMA}"
            raise StorageError(f"{folder.uri}/{DESIGN} {told}")
        try:
            return cls(folder, Design.model_validate(found))
        except ValidationError as e:
            raise StorageError(f"{folder.uri}/{DESIGN} is damaged: {e.errors()[0]['msg']}") from e

    def video(self, name: str) -> Path | None:
        """The MP4 of an opaque name; None for a name that the design does not hold."""
        if name not in self.design.clips:
            return None
        return Path(self.folder.path, "videos", f"{name}.mp4")

    def raters(self) -> dict[int, str]:
        """Place to the rater who took it."""
        found = {}
        for name in self.folder.list("places"):
            found[int(Path(name).stem)] = self.folder.read_json(name)["rater"]
        return found

    def place_of(self, rater: str) -> int | None:
        """The rater's place; the first free one where the rater has none yet, which is then taken; None: all are.

        Two requests of one rater cannot take two: each looks from the first place on, and stops at its own.
        """
        standing = self.raters()
        for place, other in standing.items():
            if other == rater:
                return place
        for place in range(len(self.design.sequences)):
            name = f"places/{place:04d}.json"
            if place not in standing and self.folder.write_new(name, json.dumps({"rater": rater}).encode()):
                return place
            if self.folder.read_json(name)["rater"] == rater:
                return place
        return None

    def answers(self, place: int) -> dict[str, Given]:
        """Item to the answer of the rater at a place."""
        names = self.folder.list(f"answers/{place:04d}")
        return {Path(name).stem: Given.model_validate(self.folder.read_json(name)) for name in names}

    def put(self, place: int, item: str, answers: Mapping[str, str], seconds: float, plays: int, now: float) -> Given:
        """Keep an answer and return what stands. The same answer again changes nothing; another one replaces it."""
        assert _NAME.fullmatch(item)
        name = f"answers/{place:04d}/{item}.json"
        first_at, changes = now, 0
        if self.folder.exists(name):
            standing = Given.model_validate(self.folder.read_json(name))
            if standing.answers == dict(answers):
                return standing
            first_at, changes = standing.first_at, standing.changes + 1
        given = Given(
            answers=dict(answers), seconds=seconds, plays=plays, first_at=first_at, answered_at=now, changes=changes
        )
        self.folder.write_bytes(name, given.model_dump_json().encode())
        _sync(Path(self.folder.path, name).parent)
        return given


def _sync(folder: Path) -> None:
    """Make the name of a new file survive a power cut, as its content does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
