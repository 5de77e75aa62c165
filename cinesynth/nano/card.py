"""The README of the nano model's folder: data and licences, recipe, sizes, figures, limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cinesynth.metrics.catalogue import METRICS
from cinesynth.nano.recipe import Recipe
from cinesynth.scripted.photographs import HELD_OUT, PHOTOGRAPHS, TRAINED_ON

_HEAD = """# The nano model

Wan2.1 image-to-video in its own classes and files, at nine million parameters: the default model of cinesynth, its
test fixture, and the stand-in for Wan2.1-14B in what can be checked without a GPU. It makes 33 frames of 96x64 pixels
at 16 fps from a first frame and a caption. `make nano` trains it again from a seed.

Licence: Apache-2.0. No weights of others are in it.
"""

_LIMITS = """## Limits

- It knows one world: scripted shots, that is drawn textures and photographs under one moving object and one camera
  move. Anything else (people, streets, cuts) comes out blurred; the table of bikes.mp4 says how much.
- Captions are those of the scripted shots, in English and in their word order; other words mean little to it.
- Its videos are soft, and move more slowly than their captions say: pans and tilts at about half the speed, zooms and
  rolls at less. Small objects dissolve after a second.
- What enters a view at its edge is made up: the first frame does not show it.
- LPIPS with AlexNet was a term of the VAE's loss and is a metric in its tables. KVD uses another network.
- It is not meant for making pictures of people, and is far too small for it.
"""


def write_card(folder: Path, recipe: Recipe, figures: dict[str, dict[str, float]], seconds: dict[str, float]) -> Path:
    """Write `README.md` into a model folder; `figures` by table, `seconds` by stage of the training."""
    sizes = {
        name: sum(p.stat().st_size for p in (folder / name).rglob("*") if p.is_file()) / 1e6
        for name in ("transformer", "vae", "text_encoder", "image_encoder", "tokenizer")
    }
    parts = [
        _HEAD,
        _table("## Sizes (fp16)", ("component", "MB"), [(name, f"{size:.1f}") for name, size in sizes.items()]),
        _data(),
        _recipe(recipe, seconds),
        f"KVD in the tables is version {METRICS['kvd'].version}.\n",
        *(
            _table(f"## Figures: {title}", ("figure", "value"), [(k, f"{v:.4f}") for k, v in table.items()])
            for title, table in figures.items()
        ),
        _LIMITS,
    ]
    path = folder / "README.md"
    path.write_text("\n".join(parts))
    return path


def _data() -> str:
    rows = [(PHOTOGRAPHS[n].phrase, PHOTOGRAPHS[n].credit, PHOTOGRAPHS[n].licence) for n in TRAINED_ON]
    return (
        "## Data\n\nScripted shots of `cinesynth.scripted`: drawn textures, and these photographs, fetched from the "
        "packages that carry them. The pictures themselves are not in this package.\n\n"
        + _table("", ("photograph", "author", "licence"), rows).lstrip("\n")
        + f"\nNever trained on, for the figures below: {', '.join(PHOTOGRAPHS[n].phrase for n in HELD_OUT)}.\n"
    )


def _recipe(recipe: Recipe, seconds: dict[str, float]) -> str:
    t = recipe.transformer
    o = t.optimizer
    phases = "; ".join(f"{p.schedule.steps} steps of {p.batch} x {p.frames} frames" for p in recipe.phases)
    minutes = ", ".join(f"{name} {value / 60:.0f}" for name, value in seconds.items())
    return f"""## Recipe

{recipe.train_windows} windows, seed {recipe.seed}, {os.cpu_count()} CPU cores; minutes: {minutes}.

1. VAE: the linear skeleton of the network alone, {recipe.skeleton.steps} steps; then all of it, {phases}: L1, L2,
   colour, LPIPS and KL. Gate: above a PCA of the latent budget.
2. Text and image encoder: contrastively against first frames and videos, {recipe.encoders.steps} steps.
3. Transformer: the project's training loop in mode `full`, {o.steps} steps of {o.batch_size} windows, {o.algorithm}
   at {o.lr:g}, {t.flow.distribution} noise levels with shift {t.flow.shift:g}, caption dropout {t.caption_dropout:g}.
"""


def _table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows)]
    return "\n".join([title, "", *lines, ""])
