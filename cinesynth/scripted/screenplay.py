"""What happens in a scripted clip, drawn from a seed: shots, and the caption that says exactly that.

Drawing a screenplay renders nothing (`cinesynth.scripted.series` does), so captions alone cost microseconds.
Lengths are in view heights, times in seconds, angles in radians; x to the right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from cinesynth.scripted.photographs import PHOTOGRAPHS

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 52, 48),
    "orange": (240, 138, 36),
    "yellow": (246, 208, 62),
    "green": (70, 168, 84),
    "teal": (38, 160, 164),
    "blue": (52, 104, 214),
    "purple": (132, 80, 190),
    "pink": (236, 122, 168),
    "white": (240, 240, 236),
    "gray": (122, 126, 134),
}
SHAPES = ("ball", "square", "triangle", "star", "ring")

# Texture name to the phrase that describes it.
TEXTURES: dict[str, str] = {
    "gradient": "a smooth {a} and {b} gradient",
    "clouds": "soft {a} clouds on {b}",
    "checker": "a {a} and {b} checkerboard",
    "stripes": "{a} and {b} stripes",
    "dots": "{a} dots on {b}",
    "hills": "rolling {a} hills under a {b} sky",
    "ripples": "{a} and {b} ripples",
}
PHOTOGRAPH_SHARE = 0.5  # of the shots, where a series has photographs
_BARE_SHARE = 0.4  # of the shots show no object
_STEADY_SHARE = 1 / 8  # of the shots keep their light
MOTIONS: dict[str, str] = {
    "still": "stays still",
    "bounce": "falls and bounces",
    "slide right": "slides to the right",
    "slide left": "slides to the left",
    "rise": "drifts upward",
    "sink": "drifts downward",
    "orbit clockwise": "circles clockwise",
    "orbit counterclockwise": "circles counterclockwise",
    "pendulum": "swings like a pendulum",
    "spin": "spins clockwise",
}
CAMERAS: dict[str, str] = {
    "static": "the camera is still",
    "pan right": "the camera pans right",
    "pan left": "the camera pans left",
    "tilt up": "the camera tilts up",
    "tilt down": "the camera tilts down",
    "push in": "the camera pushes in",
    "pull out": "the camera pulls out",
    "roll clockwise": "the camera rolls clockwise",
    "roll counterclockwise": "the camera rolls counterclockwise",
}
LIGHTS: dict[str, str] = {
    "steady": "",
    "fade": "the light fades",
    "brighten": "the light grows brighter",
    "pulse": "the light pulses",
    "golden": "the light pulses golden",
    "blue": "the light pulses blue",
    "red": "the light pulses red",
}
PULSES = ("pulse", "golden", "blue", "red")
FILM_LOOK = "film look"  # stands for grade, grain, letterbox and push-in; a caption names none of these


@dataclass(frozen=True)
class Shot:
    """One continuous take. `phase` (0..1) varies what the first frame shows: where a motion begins.

    `texture` is a key of TEXTURES or of PHOTOGRAPHS. With `film_look` the shot is graded, and its caption says so.
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
    film_look: bool = False

    @property
    def caption(self) -> str:
        """One sentence, without a full stop, that says everything that the shot shows."""
        a, b = self.texture_colours
        if self.texture in PHOTOGRAPHS:
            ground = f"a photograph of {PHOTOGRAPHS[self.texture].phrase}"
        else:
            ground = TEXTURES[self.texture].format(a=a, b=b).replace("a orange", "an orange")
        if self.shape is None:
            subject = ground
        else:
            size = "large " if self.size > 0.36 else "small " if self.size < 0.26 else ""
            article = "an" if not size and self.colour == "orange" else "a"
            subject = f"{article} {size}{self.colour} {self.shape} {MOTIONS[self.motion]} in front of {ground}"
        if self.film_look:
            return f"{FILM_LOOK}, {subject}"
        light = f", {LIGHTS[self.light]}" if LIGHTS[self.light] else ""
        return f"{subject}, {CAMERAS[self.camera]}{light}"


@dataclass(frozen=True)
class Screenplay:
    """The shots of one clip, in order, with hard cuts between them."""

    shots: tuple[Shot, ...]

    @property
    def caption(self) -> str:
        return ", then a cut: ".join(shot.caption for shot in self.shots)


def draw_screenplay(seed: int, index: int, photographs: tuple[str, ...] = (), film_look: bool = False) -> Screenplay:
    """The screenplay of clip `index` of the series `seed`; the arguments alone decide it.

    `photographs` are keys of PHOTOGRAPHS that serve as textures beside the drawn ones.
    """
    rng = np.random.default_rng([seed, index])
    total = float(rng.uniform(3.5, 5.0))
    # Every sixth clip on average has cuts; two only where each shot still holds a second and a half.
    count = 1
    if rng.random() < 1 / 6:
        total = float(rng.uniform(4.4, 5.0))
        count = 2 if rng.random() < 0.6 else 3
    shares = np.array([1.0]) if count == 1 else rng.uniform(0.9, 1.1, count)
    durations = total * shares / shares.sum()
    shots: list[Shot] = []
    for duration in durations:
        shots.append(_draw_shot(rng, float(duration), shots[-1] if shots else None, photographs))
    if film_look:
        shots = [replace(shot, camera="slow push in", light="steady", film_look=True) for shot in shots]
    return Screenplay(tuple(shots))


def sample_captions(count: int, seed: int = 0, photographs: tuple[str, ...] = ()) -> list[str]:
    """The captions of clips 0..count-1 of a series, as `scripted_clip` gives them, without rendering."""
    return [draw_screenplay(seed, index, photographs).caption for index in range(count)]


def _draw_shot(rng: np.random.Generator, duration: float, before: Shot | None, photographs: tuple[str, ...]) -> Shot:
    def pick(options: list[str]) -> str:
        return options[int(rng.integers(len(options)))]

    taken = set(before.texture_colours) if before else set()
    names = [str(n) for n in rng.permutation([c for c in COLOURS if c not in taken])]
    first, second, colour = names[:3]
    pool = list(photographs) if photographs and rng.random() < PHOTOGRAPH_SHARE else list(TEXTURES)
    textures = [t for t in pool if before is None or t != before.texture] or pool
    texture = pick(textures)
    shape = None if rng.random() < _BARE_SHARE else pick(list(SHAPES))
    motions = [m for m in MOTIONS if not (shape in ("ball", "ring") and m == "spin")]
    if shape is None:
        motions = ["still"]
    motion = pick(motions)
    cameras = list(CAMERAS)
    if motion == "still":
        cameras.remove("static")
    camera = pick(cameras)
    light = "steady" if rng.random() < _STEADY_SHARE else pick(["fade", "brighten", *PULSES, *PULSES])
    return Shot(
        duration=duration,
        texture=texture,
        texture_colours=(first, second),
        texture_scale=float(rng.uniform(0.8, 1.25)),
        texture_angle=float(rng.uniform(0, math.pi)),
        texture_seed=int(rng.integers(2**31)),
        shape=shape,
        colour=colour,
        size=float(rng.uniform(0.2, 0.42)),
        place=(float(rng.uniform(-0.25, 0.25)), float(rng.uniform(-0.12, 0.12))),
        motion=motion,
        camera=camera,
        light=light,
        phase=float(rng.random()),
    )
