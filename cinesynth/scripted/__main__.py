"""The command line of `write_scripted_clips`.

python -m cinesynth.scripted --out footage/scripted --count 72 --seed 0
python -m cinesynth.scripted --out footage/film-look --count 40 --photographs held-out --film-look
"""

from __future__ import annotations

import argparse

from cinesynth.scripted.photographs import HELD_OUT, TRAINED_ON
from cinesynth.scripted.series import write_scripted_clips

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
    parser.add_argument("--film-look", action="store_true", help="grade, grain, letterbox and a push-in on every shot")
    arguments = parser.parse_args(argv)
    paths = write_scripted_clips(
        arguments.out,
        arguments.count,
        arguments.seed,
        arguments.height,
        arguments.width,
        photographs=_SETS[arguments.photographs],
        film_look=arguments.film_look,
    )
    print(f"{len(paths)} clips in {arguments.out}")


if __name__ == "__main__":
    main()
