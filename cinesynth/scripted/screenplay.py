"""What happens in a scripted clip, drawn from a seed: shots, and the caption that says exactly that.

Drawing a screenplay renders nothing (`cinesynth.scripted.series` does), so captions alone cost microseconds.
Lengths are in view heights, times in seconds, angles in radians; x to the right, y down.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cinesynth.errors import ConfigError
from cinesynth.scripted.photographs import PHOTOGRAPHS
from cinesynth.scripted.vocabulary import Vocabulary, vocabulary_of

PHOTOGRAPH_SHARE = 0.5  # of the shots, where a series has photographs
_BARE_SHARE = 0.4  # of the shots show no object
_STEADY_SHARE = 1 / 8  # of the shots keep their light
LONGEST_S = 5.0  # of a clip whose length is drawn
MIN_SECONDS, MAX_SECONDS = 1.0, 60.0  # of a clip whose length is given


@dataclass(frozen=True)
class Shot:
    """One continuous take. `phase` (0..1) varies what the first frame shows: where a motion begins.

    `texture` is a name of the look's vocabulary or of PHOTOGRAPHS. `look` is a key of VOCABULARIES.
    """

    duration: float
    texture: str
    texture_colours: tuple[str, str]
    texture_scale: float
    texture_angle: float
    texture_seed: int
    shape: str | None
    colour: str
    size: float
    place: tuple[float, float]
    motion: str
    camera: str
    light: str
    phase: float
    look: str | None = None

    @property
    def words(self) -> Vocabulary:
        """The vocabulary of its look."""
        return vocabulary_of(self.look)

    @property
    def caption(self) -> str:
        """One sentence, without a full stop, that says everything that the shot shows."""
        words = self.words
        a, b = self.texture_colours
        if self.texture in PHOTOGRAPHS:
            ground = f"a photograph of {PHOTOGRAPHS[self.texture].phrase}"
        else:
            ground = re.sub(r"\ba (?=[aeiou])", "an ", words.textures[self.texture].format(a=a, b=b))
        subject = ground
        if self.shape is not None:
            _, small, large, _ = words.sizes
            size = "large " if self.size > large else "small " if self.size < small else ""
            thing = f"{size}{self.colour} {self.shape}"
            article = "an" if thing[0] in "aeiou" else "a"
            subject = f"{article} {thing} {words.motions[self.motion]} in front of {ground}"
        light = f", {phrase}" if (phrase := words.lights.get(self.light)) else ""
        return words.caption.format(subject=subject, camera=words.cameras.get(self.camera, ""), light=light)


@dataclass(frozen=True)
class Screenplay:
    """The shots of one clip, in order, with hard cuts between them."""

    shots: tuple[Shot, ...]

    @property
    def caption(self) -> str:
        return ", then a cut: ".join(shot.caption for shot in self.shots)


def draw_screenplay(
    seed: int,
    index: int,
    photographs: tuple[str, ...] = (),
    look: str | None = None,
    seconds: float | None = None,
) -> Screenplay:
    """The screenplay of clip `index` of the series `seed`; the arguments alone decide it.

    Args:
        seed, index: which clip.
        photographs: keys of PHOTOGRAPHS that serve as textures beside the drawn ones.
        look: a key of VOCABULARIES.
        seconds: the clip is one shot of this length. None: 3.5 to 5 s, in one clip of six with cuts.

    Raises ConfigError for an unknown look, and for a length below 1 or above 60 seconds.
    """
    if seconds is not None and not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ConfigError(f"seconds = {seconds:g}: a scripted clip has {MIN_SECONDS:g} to {MAX_SECONDS:g}")
    words = vocabulary_of(look)
    rng = np.random.default_rng([seed, index])
    total = float(rng.uniform(3.5, LONGEST_S))
    # Every sixth clip on average has cuts; two only where each shot still holds a second and a half.
    count = 1
    if rng.random() < 1 / 6:
        total = float(rng.uniform(4.4, LONGEST_S))
        count = 2 if rng.random() < 0.6 else 3
    shares = np.array([1.0]) if count == 1 else rng.uniform(0.9, 1.1, count)
    durations = total * shares / shares.sum() if seconds is None else [seconds]
    shots: list[Shot] = []
    for duration in durations:
        shot = _draw_shot(rng, float(duration), shots[-1] if shots else None, photographs, words)
        always: dict[str, Any] = dict(words.always)
        shots.append(replace(shot, look=look, **always))
    return Screenplay(tuple(shots))


def sample_captions(
    count: int,
    seed: int = 0,
    photographs: tuple[str, ...] = (),
    look: str | None = None,
    seconds: float | None = None,
) -> list[str]:
    """The captions of clips 0..count-1 of a series, as `scripted_clip` gives them, without rendering."""
    return [draw_screenplay(seed, index, photographs, look, seconds).caption for index in range(count)]


def _draw_shot(
    rng: np.random.Generator, duration: float, before: Shot | None, photographs: tuple[str, ...], words: Vocabulary
) -> Shot:
    def pick(options: list[str]) -> str:
        return options[int(rng.integers(len(options)))]

    taken = set(before.texture_colours) if before else set()
    names = [str(n) for n in rng.permutation([c for c in words.colours if c not in taken])]
    first, second, colour = names[:3]
    pool = list(photographs) if photographs and rng.random() < PHOTOGRAPH_SHARE else list(words.textures)
    textures = [t for t in pool if before is None or t != before.texture] or pool
    texture = pick(textures)
    shape = None if rng.random() < _BARE_SHARE else pick(list(words.shapes))
    motions = [m for m in words.motions if (shape, m) not in words.never]
    if shape is None:
        motions = ["still"]
    motion = pick(motions)
    cameras = list(words.cameras)
    if motion == "still":
        cameras.remove("static")
    camera = pick(cameras)
    lights = words.changing_lights if duration <= LONGEST_S else words.lasting_lights
    light = "steady" if rng.random() < _STEADY_SHARE else pick(list(lights))
    return Shot(
        duration=duration,
        texture=texture,
        texture_colours=(first, second),
        texture_scale=float(rng.uniform(0.8, 1.25)),
        texture_angle=float(rng.uniform(0, math.pi)),
        texture_seed=int(rng.integers(2**31)),
        shape=shape,
        colour=colour,
        size=float(rng.uniform(words.sizes[0], words.sizes[3])),
        place=(float(rng.uniform(-0.25, 0.25)), float(rng.uniform(-0.12, 0.12))),
        motion=motion,
        camera=camera,
        light=light,
        phase=float(rng.random()),
    )
