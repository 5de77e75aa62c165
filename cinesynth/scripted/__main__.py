"""The command line of `write_scripted_clips`.

python -m cinesynth.scripted --out footage/scripted --count 72 --seed 0
python -m cinesynth.scripted --out footage/film-look --count 40 --photographs held-out --look film
python -m cinesynth.scripted --out footage/historical --count 24 --look historical --seconds 8.2
"""

from __future__ import annotations

import argparse

from cinesynth.scripted.photographs import HELD_OUT, TRAINED_ON
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.scripted.vocabulary import LOOK_NAMES, vocabulary_of

_SETS: dict[str, tuple[str, ...]] = {"none": (), "held-out": HELD_OUT, "trained-on": TRAINED_ON}


def main(argv: list[str] | None = None) -> None:
    """Write a series into the given folder, and print how many clips it has."""
    parser = argparse.ArgumentParser(prog="python -m cinesynth.scripted", description=__doc__)
    parser.add_argument("--out", required=True, help="folder; created if missing")
    parser.add_argument("--count", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--photographs", choices=_SETS, default="none", help="textures beside the drawn ones")
    parser.add_argument("--look", choices=LOOK_NAMES, help="default: the plain world")
    parser.add_argument("--seconds", type=float, help="one shot of this length; default: 3.5 to 5, some cut")
    arguments = parser.parse_args(argv)
    paths = write_scripted_clips(
        arguments.out,
        arguments.count,
        arguments.seed,
        arguments.height,
        arguments.width,
        photographs=_SETS[arguments.photographs],
        look=arguments.look,
        seconds=arguments.seconds,
    )
    source = f"{{path: {arguments.out}, domain: {vocabulary_of(arguments.look).domain}}}"
    print(f"{len(paths)} clips in {arguments.out}; in `footage` of prepare: {source}")


if __name__ == "__main__":
    main()
