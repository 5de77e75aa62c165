"""A review's design: items under opaque names, each rater's sequence of them, and what the answers to checks should be.

It is a pure function of the configuration, the windows and a salt. The salt is drawn once and kept with the design, so
that nobody who knows the seed can tell from a name which arm made a video.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cinesynth.errors import ConfigError
from cinesynth.studies.review.config import Format, Question, ReviewConfig
from cinesynth.studies.review.order import Shown, places_of_checks, sequences
from cinesynth.wan.family import DEFAULT_FAMILY

SCHEMA = 1
CHOICES: dict[Format, tuple[str, ...]] = {"pairs": ("A", "B", "tie"), "scales": ("1", "2", "3", "4", "5")}
"""What a question may be answered with. A is the video on the left."""

_DRAWS = 20
"""Places of checks that are drawn, of which the best one is taken."""

Variant = Literal["shown", "whole", "again", "damaged"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Window(_Record):
    """A window that is judged. Windows of one group (scene) are not independent. Sides are in pixels."""

    id: str
    group: str
    caption: str = ""
    width: int = 0
    height: int = 0
    fps: float = DEFAULT_FAMILY.fps


class Clip(_Record):
    """What an opaque video name stands for: a window as an arm (or `real`) has it.

    Attributes:
        variant: `shown` in an item; in a check `whole`, the same once more (`again`), or `damaged`.
    """

    source: str
    window: str
    variant: Variant = "shown"


class Item(_Record):
    """What is shown at once: two videos, left (A) and right (B), or one on scales.

    Attributes:
        videos: opaque names.
        expected: of an attention check, question to the answers that are right; else empty.
    """

    videos: tuple[str, ...]
    expected: dict[str, tuple[str, ...]] = {}


class Design(_Record):
    """All that a review is, as `design.json` holds it. Only `title` to `questions`, and opaque names, reach raters.

    Attributes:
        identity: the configuration that it was made with.
        inputs: sha256 of what was read, by the configuration's key.
        arms: in the order of the configuration; the first is the baseline.
        clips: opaque video name to what it is.
        items: opaque item name to what is shown.
        sequences: item names of each rater's place, in the order in which they are shown.
    """

    schema_version: int = SCHEMA
    code_version: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    salt: str
    title: str
    instructions: str
    format: Format
    questions: tuple[Question, ...]
    arms: tuple[str, ...]
    windows: dict[str, Window]
    clips: dict[str, Clip]
    items: dict[str, Item]
    sequences: tuple[tuple[str, ...], ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """What a question may be answered with."""
        return CHOICES[self.format]

    def window_of(self, item: str) -> Window:
        """The window that an item shows."""
        return self.windows[self.clips[self.items[item].videos[0]].window]

    def arms_of(self, item: str) -> tuple[str, ...]:
        """Which arm made each video of an item, left to right."""
        return tuple(self.clips[video].source for video in self.items[item].videos)


def make_design(
    config: ReviewConfig, windows: Sequence[Window], salt: str, code_version: str, inputs: Mapping[str, str]
) -> Design:
    """The design of a review of these windows (two at least), which all arms have.

    Args:
        config: of the review.
        windows: in any order.
        salt: random hex digits, for the opaque names.
        code_version, inputs: are recorded.

    Raises ConfigError for more checks than windows.
    """
    if config.checks > len(windows):
        raise ConfigError(f"checks {config.checks} exceeds the {len(windows)} windows; each is made of another one")
    names = _Names(salt)
    conditions = list(_conditions(config))
    shown = sequences(config.raters, len(windows), len(conditions), config.times, config.seed)
    checks = _checks(config, windows, names)
    placed = []
    for rater, sequence in enumerate(shown):
        items = [
            names.item([Clip(source=arm, window=windows[s.window].id) for arm in _turned(conditions[s.condition], s)])
            for s in sequence
        ]
        placed.append(tuple(_with_checks(items, checks, names, rater, config.seed)))
    return Design(
        code_version=code_version,
        identity=config.identity(),
        inputs=dict(inputs),
        salt=salt,
        title=config.title,
        instructions=config.instructions,
        format=config.format,
        questions=tuple(config.asked()),
        arms=tuple(config.arms),
        windows={window.id: window for window in windows},
        clips=names.clips,
        items=names.items,
        sequences=tuple(placed),
    )


class _Names:
    """Opaque names, and what each stands for."""

    def __init__(self, salt: str) -> None:
        self.salt = salt
        self.clips: dict[str, Clip] = {}
        self.items: dict[str, Item] = {}

    def item(self, clips: Sequence[Clip], expected: Mapping[str, tuple[str, ...]] | None = None) -> str:
        videos = tuple(self._clip(clip) for clip in clips)
        name = self._hashed("item", *videos)
        self.items[name] = Item(videos=videos, expected=dict(expected or {}))
        return name

    def _clip(self, clip: Clip) -> str:
        name = self._hashed("video", clip.source, clip.window, clip.variant)
        self.clips[name] = clip
        return name

    def _hashed(self, *parts: str) -> str:
        return hashlib.sha256("\0".join([self.salt, *parts]).encode()).hexdigest()[:32]


def damage_source(config: ReviewConfig) -> str:
    """Whose videos the damaged ones are made of: the real ones where there are any, else the first arm's."""
    return "real" if config.real is not None or "real" in config.arms else next(iter(config.arms))


def _conditions(config: ReviewConfig) -> Iterator[tuple[str, ...]]:
    """Pairs of arms, or single arms."""
    return itertools.combinations(config.arms, 2 if config.format == "pairs" else 1)


def _turned(arms: tuple[str, ...], shown: Shown) -> tuple[str, ...]:
    return arms[::-1] if shown.swapped else arms


def _checks(config: ReviewConfig, windows: Sequence[Window], names: _Names) -> list[tuple[str, str]]:
    """Each check as its two items, of which the second has the sides changed.

    In pairs every second one shows a video beside itself: a tie in all questions. The others show a video and the same
    one damaged: it is worse in the questions that are marked with `check`.
    """
    draw = random.Random(f"checks {config.seed}")
    order = draw.sample(range(len(windows)), len(windows))
    checked = [question.name for question in config.asked() if question.check]
    source = damage_source(config)
    found = []
    for n in range(config.checks):
        whole = Clip(source=source, window=windows[order[n]].id, variant="whole")
        damaged = whole.model_copy(update={"variant": "damaged"})
        again = whole.model_copy(update={"variant": "again"})
        if config.format == "scales":
            low = names.item([damaged], dict.fromkeys(checked, ("1", "2")))
            found.append((low, low))
        elif n % 2:
            tie = {question.name: ("tie",) for question in config.asked()}
            found.append((names.item([whole, again], tie), names.item([again, whole], tie)))
        else:
            left, right = dict.fromkeys(checked, ("A",)), dict.fromkeys(checked, ("B",))
            found.append((names.item([whole, damaged], left), names.item([damaged, whole], right)))
    return found


def _with_checks(
    items: list[str], checks: Sequence[tuple[str, str]], names: _Names, rater: int, seed: int
) -> list[str]:
    """The rater's sequence with the checks spread over it, each apart from its own window where that can be."""
    draw = random.Random(f"places {seed} {rater}")
    turned = [sides[(n // 2 + rater) % 2] for n, sides in enumerate(checks)]

    def drawn() -> list[str]:
        found = list(items)
        order = draw.sample(turned, len(turned))
        for added, place in enumerate(places_of_checks(len(items), len(checks), draw)):
            found.insert(place + added, order[added])
        return found

    def beside(found: list[str]) -> int:
        windows = [names.clips[names.items[name].videos[0]].window for name in found]
        return sum(a == b for a, b in pairwise(windows))

    return min((drawn() for _ in range(_DRAWS)), key=beside)
