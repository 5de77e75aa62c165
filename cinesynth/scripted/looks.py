"""The looks of the scripted world, by their name in a shot."""

from __future__ import annotations

from cinesynth.scripted.film_look import FILM
from cinesynth.scripted.look import Look
from cinesynth.scripted.plain import PLAIN

LOOKS: dict[str | None, Look] = {None: PLAIN, "film": FILM}
"""One for each vocabulary."""
