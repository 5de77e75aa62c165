"""The configuration of an expert review: which videos are shown to how many raters, and what they are asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cinesynth.errors import ConfigError
from cinesynth.settings import NAME_PATTERN, Finite, Settings, locations, runtime

Format = Literal["pairs", "scales"]


class Question(Settings):
    """What a rater is asked of each pair, or of each video."""

    name: str = Field(pattern=NAME_PATTERN, description="in tables")
    text: str = Field(min_length=1, max_length=200, description="as the rater reads it")
    hint: str = Field("", max_length=400, description="what to look at")
    low: str = Field("bad", max_length=40, description="what 1 means on a scale")
    high: str = Field("excellent", max_length=40, description="what 5 means on a scale")
    check: bool = Field(False, description="a heavily damaged video is worse in this: attention checks ask for it")


QUESTIONS = {
    "style": ("Style", "Costume, light, colour and framing look like a film's."),
    "stability": ("Temporal stability", "Faces, objects and background keep their shape from frame to frame."),
    "motion": ("Motion", "People, things and the camera move as in life, and enough."),
    "artefacts": (
        "Freedom from artefacts",
        "No flicker, smearing, blocks, extra limbs or other faults of the picture.",
    ),
}
"""Name to text and hint of the paper's aspects (arXiv 2510.27364 says no more than "a small expert user study")."""


def standard_questions() -> list[Question]:
    """The questions of a review that names none."""
    checked = ("stability", "artefacts")
    return [Question(name=n, text=text, hint=hint, check=n in checked) for n, (text, hint) in QUESTIONS.items()]


class ReviewConfig(Settings):
    """A review: `python -m cinesynth.studies.review design --config review.yaml`."""

    name: str = runtime(pattern=NAME_PATTERN, description="review name: lower-case letters, digits, '.', '_', '-'")
    storage: str = runtime("storage", description="folder that the service sees; the review lies below its `reviews`")
    title: str = Field("Video review", min_length=1, max_length=80, description="what raters see; name no arm in it")
    instructions: str = Field("", max_length=2000, description="what raters read first, beside how the page works")
    format: Format = Field("pairs", description="pairs: two videos, A, B or tie; scales: one video, 1 to 5")
    arms: dict[Annotated[str, Field(pattern=NAME_PATTERN)], str] = locations(
        min_length=1, description="arm name to folder of videos, those of one window under one name; first: baseline"
    )
    real: str | None = runtime(
        None, description="folder of the real videos, of which heavily damaged ones are made; default: the first arm"
    )
    groups: str | None = runtime(
        None, description="CSV with columns video, group (and caption, which is shown); default: each its own group"
    )
    questions: list[Question] | None = Field(
        None,
        min_length=1,
        max_length=12,
        description="asked of each item; default: style, temporal stability, motion, freedom from artefacts",
    )
    windows: int | None = Field(24, ge=2, description="most windows, one of each group before a second; null: all")
    times: int = Field(
        1, ge=1, description="that a rater sees each window, each time of another pair of arms (scales: another arm)"
    )
    raters: int = Field(32, ge=1, le=1000, description="places; any number that is taken in order is balanced")
    checks: int = Field(4, ge=0, le=100, description="attention checks of each rater, whose answers are known")
    seed: int = Field(0, ge=0, description="of windows, sides, order and damage")
    pass_share: Finite = runtime(0.75, gt=0, le=1, description="right answers to checks below which a rater fails")

    @model_validator(mode="after")
    def _consistent(self) -> ReviewConfig:
        if "real" in self.arms and self.real is not None:
            raise ValueError("arms holds 'real' and real is given too; keep one of them")
        if self.format == "pairs" and len(self.arms) < 2:
            raise ValueError("pairs need two arms at least; give another one (the real videos may be one)")
        if self.times > self.conditions():
            what = "pairs of arms" if self.format == "pairs" else "arms"
            raise ValueError(f"times {self.times} exceeds the {self.conditions()} {what} that there are")
        names = [question.name for question in self.asked()]
        if len(set(names)) < len(names):
            raise ValueError("questions: two have one name")
        if self.checks and not any(question.check for question in self.asked()):
            raise ValueError("checks need a question with check: true; mark one, or set checks=0")
        return self

    def asked(self) -> list[Question]:
        """The questions of each item."""
        return standard_questions() if self.questions is None else self.questions

    def conditions(self) -> int:
        """Pairs of arms, or arms on scales."""
        return math.comb(len(self.arms), 2) if self.format == "pairs" else len(self.arms)

    def check_inputs(self) -> None:
        folders = {f"arms.{name}": folder for name, folder in self.arms.items()}
        if self.real is not None:
            folders["real"] = self.real
        for key, folder in folders.items():
            if not Path(folder).expanduser().is_dir():
                raise ConfigError(f"{key}: {folder!r} is not a folder; give a local folder of videos")
        if self.groups and not Path(self.groups).expanduser().is_file():
            raise ConfigError(f"groups: {self.groups!r} does not exist; give a CSV file with columns video, group")
