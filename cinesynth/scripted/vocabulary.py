"""What scripted shots may show, and the words for it: one vocabulary for the plain world, and one for each look.

Their order matters: a seed picks by place. A change here changes the frames of every series of that vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cinesynth.errors import ConfigError

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
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
class Vocabulary:
    """What a shot may show, and how its caption says so.

    Attributes:
        domain: what a dataset's windows of it are tagged with.
        colours: of things and textures; RGB.
        textures, motions, cameras, lights: names to phrases.
        shapes: of things.
        changing_lights: what a light that is not steady is drawn from; one that is named twice comes twice as often.
        lasting_lights: the same for shots that are longer than five seconds.
        never: pairs of shape and motion that are not drawn.
        always: fields of a shot that replace what was drawn.
        caption: its form, of `subject`, `camera` and `light`.
        sizes: of things in view heights: the least, below which they are small, above which they are large, the most.
        pace: speed of cameras and slides, as a share of the plain world's.
        follows: places of things are measured from the camera, which follows them.
    """

    domain: str
    colours: Mapping[str, Colour]
    textures: Mapping[str, str]
    shapes: tuple[str, ...]
    motions: Mapping[str, str]
    cameras: Mapping[str, str]
    lights: Mapping[str, str]
    changing_lights: tuple[str, ...]
    lasting_lights: tuple[str, ...]
    never: frozenset[tuple[str, str]] = frozenset()
    always: Mapping[str, str] = field(default_factory=dict)
    caption: str = "{subject}, {camera}{light}"
    sizes: tuple[float, float, float, float] = (0.2, 0.26, 0.36, 0.42)
    pace: float = 1.0
    follows: bool = False


_PLAIN = Vocabulary(
    domain="scripted",
    colours=COLOURS,
    textures=TEXTURES,
    shapes=SHAPES,
    motions=MOTIONS,
    cameras=CAMERAS,
    lights=LIGHTS,
    changing_lights=("fade", "brighten", *PULSES, *PULSES),
    lasting_lights=PULSES,  # a light that fades is gone after five seconds
    never=frozenset({("ball", "spin"), ("ring", "spin")}),
)
_FILM = replace(
    _PLAIN,
    domain="film-look",
    always={"camera": "slow push in", "light": "steady"},
    caption=FILM_LOOK + ", {subject}",
)
_LARGER = (0.3, 0.36, 0.48, 0.56)  # things with more to see
_PROPS = ("candle", "goblet", "shield", "crown", "urn", "lantern")
_CANDLELIGHT = ("flicker", "flicker", "dim", "grow")
_HISTORICAL = Vocabulary(
    domain="historical",
    colours={
        "burgundy": (138, 34, 46),
        "ochre": (200, 142, 58),
        "umber": (112, 78, 52),
        "ivory": (232, 220, 190),
        "olive": (116, 114, 62),
        "rust": (178, 84, 42),
        "gold": (220, 176, 70),
        "slate": (98, 108, 118),
    },
    textures={
        "masonry": "a wall of {a} stone with {b} mortar",
        "panelling": "{a} wooden panels with {b} edges",
        "damask": "{a} damask on a {b} wall",
        "tapestry": "a {a} and {b} tapestry",
        "arcade": "a {a} stone arcade before a {b} dusk",
        "curtain": "a heavy {a} curtain with a {b} hem",
    },
    shapes=_PROPS,
    motions={
        "still": "stands still",
        "slide right": "is carried to the right",
        "slide left": "is carried to the left",
        "rise": "is lifted",
        "pendulum": "swings on its chain",
    },
    cameras={
        "static": "the camera is still",
        "pan right": "the camera slowly pans right",
        "pan left": "the camera slowly pans left",
        "tilt up": "the camera slowly tilts up",
        "tilt down": "the camera slowly tilts down",
        "push in": "the camera slowly pushes in",
    },
    lights={
        "steady": "in daylight from a window",
        "flicker": "in flickering candlelight",
        "dim": "as the candlelight dims",
        "grow": "as the candlelight grows",
    },
    changing_lights=_CANDLELIGHT,
    lasting_lights=_CANDLELIGHT,
    never=frozenset((shape, "pendulum") for shape in _PROPS if shape != "lantern"),
    caption="{subject}, {camera}{light}, historical drama",
    sizes=_LARGER,
    pace=0.5,
)
_NEON = ("pulse", "flicker", "sweep")
_SCI_FI = Vocabulary(
    domain="sci-fi",
    colours={
        "cyan": (36, 216, 240),
        "magenta": (240, 48, 190),
        "violet": (132, 84, 255),
        "lime": (150, 250, 84),
        "silver": (196, 210, 224),
        "cobalt": (40, 84, 226),
        "amber": (255, 176, 40),
        "graphite": (84, 94, 112),
    },
    textures={
        "hull": "{a} hull plates with {b} seams",
        "city": "a night city of {a} towers under a {b} sky",
        "nebula": "a {a} and {b} nebula",
        "grid": "a {a} grid below a {b} sun",
        "circuit": "{b} circuits on a {a} board",
        "hexagons": "{a} hexagons with {b} edges",
    },
    shapes=("drone", "starship", "robot", "orb", "gate", "satellite"),
    motions={
        "still": "keeps its place",
        "hover": "hovers up and down",
        "orbit clockwise": "circles clockwise",
        "orbit counterclockwise": "circles counterclockwise",
        "spin": "spins clockwise",
        "rise": "lifts off",
    },
    cameras={
        "static": "the camera is still",
        "push in": "the camera dollies in fast",
        "pull out": "the camera dollies out fast",
        "pan right": "the camera sweeps right",
        "pan left": "the camera sweeps left",
        "roll clockwise": "the camera rolls clockwise",
        "roll counterclockwise": "the camera rolls counterclockwise",
    },
    lights={
        "steady": "in steady neon light",
        "pulse": "in pulsing neon light",
        "flicker": "in flickering neon light",
        "sweep": "a scanner sweeps across",
    },
    changing_lights=_NEON,
    lasting_lights=_NEON,
    never=frozenset({("orb", "spin"), ("robot", "spin")}),
    caption="{subject}, {camera}{light}, science fiction",
    sizes=_LARGER,
    pace=1.75,
    follows=True,
)
VOCABULARIES: dict[str | None, Vocabulary] = {
    None: _PLAIN,
    "film": _FILM,
    "historical": _HISTORICAL,
    "sci-fi": _SCI_FI,
}
"""By look; the plain world has none."""
LOOK_NAMES = tuple(name for name in VOCABULARIES if name is not None)


def vocabulary_of(look: str | None) -> Vocabulary:
    """The vocabulary of a look. Raises ConfigError for a name that is none."""
    if look not in VOCABULARIES:
        raise ConfigError(f"look = {look!r}: there is {', '.join(LOOK_NAMES)}, and None for the plain world")
    return VOCABULARIES[look]
