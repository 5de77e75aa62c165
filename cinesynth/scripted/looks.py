"""The looks of the scripted world, by their name in a shot."""

from __future__ import annotations

from cinesynth.scripted.film_look import FILM
from cinesynth.scripted.historical import HISTORICAL
from cinesynth.scripted.look import Look
from cinesynth.scripted.plain import PLAIN
from cinesynth.scripted.sci_fi import SCI_FI

LOOKS: dict[str | None, Look] = {None: PLAIN, "film": FILM, "historical": HISTORICAL, "sci-fi": SCI_FI}
"""One for each vocabulary."""
