"""A review of tiny videos for tests: each window is a colour over which a bar moves, brighter in a later arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cinesynth.data.video import write_video
from cinesynth.settings import parse_config
from cinesynth.studies.review.config import ReviewConfig
from cinesynth.studies.review.folder import ReviewFolder


def write_arm(folder: Path, windows: int, brightness: int = 60, frames: int = 6, metadata: Any = None) -> Path:
    """Videos `w0.mkv` and so on of 64x48."""
    for window in range(windows):
        video = np.full((frames, 48, 64, 3), brightness, np.uint8)
        video[..., 1] = 25 * window % 200
        for t in range(frames):
            video[t, :, 8 * t : 8 * t + 8] = 255
        write_video(folder / f"w{window}.mkv", video, codec="ffv1", metadata=metadata)
    return folder


def review_config(folder: Path, arms: int = 2, windows: int = 4, **values: Any) -> ReviewConfig:
    """A review `looks` of arms `base`, `adapter` and so on, below `folder`; their videos are written."""
    names = ["base", "adapter", "joint"][:arms]
    folders = {
        name: str(write_arm(folder / name, windows, 60 + 60 * n, metadata={"adapters": name}))
        for n, name in enumerate(names)
    }
    values = {"name": "looks", "storage": str(folder / "storage"), "arms": folders, "raters": 8, "checks": 2, **values}
    return parse_config(ReviewConfig, values)


def answer(review: ReviewFolder, place: int, rater: str, preferred: str, wrong_checks: bool = False) -> None:
    """Answer all of a place's items: for `preferred` where it is shown, else a tie; checks as they should be."""
    design = review.design
    assert review.place_of(rater) == place
    for n, name in enumerate(design.sequences[place]):
        item, arms = design.items[name], design.arms_of(name)
        choice = "AB"[arms.index(preferred)] if len(set(arms)) > 1 and preferred in arms else "tie"
        answers = {q.name: item.expected.get(q.name, (choice,))[0] for q in design.questions}
        if item.expected and wrong_checks:
            answers = {q: next(c for c in design.choices if c not in item.expected.get(q, ())) for q in answers}
        review.put(place, name, answers, seconds=3.5, plays=2, now=1000.0 + n)
