"""The page of a training of the nano model: curves, samples and figures, as far as the training has come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cinesynth.config import TrainSettings
from cinesynth.nano.card import write_card
from cinesynth.nano.evaluation import Figures
from cinesynth.nano.recipe import Recipe
from cinesynth.nano.transformer import training_curve
from cinesynth.report.curves import progress_curve
from cinesynth.report.images import strip, strip_places
from cinesynth.report.page import write_page
from cinesynth.report.training import Training
from cinesynth.storage import Storage

_SCENES, _SHOWN = 8, 7


def write_nano_page(folder: Path, settings: TrainSettings, home: Figures | None = None) -> str:
    """Write `index.html` into the folder of a training; returns its uri.

    Args:
        folder: of `cinesynth.nano.build.Build`.
        settings: of the transformer's training.
        home: samples and generations to show.
    """
    seconds = _json(folder / "seconds.json") or {}
    figures = _json(folder / "figures.json") or {}
    places = strip_places(len(home.samples[0].frames), _SHOWN) if home else []
    return write_page(
        Storage.open(str(folder)),
        "index.html",
        "nano.html.j2",
        facts=[(name, f"{value / 60:.1f} min") for name, value in seconds.items()],
        gate=_json(folder / "vae.json"),
        charts=_charts(folder),
        training=_training(folder, settings),
        places=places,
        scenes=_scenes(home) if home else [],
        tables=[(title, [(k, f"{v:.4f}") for k, v in table.items()]) for title, table in figures.items()],
    )


def record_figures(folder: Path, recipe: Recipe, figures: dict[str, dict[str, float]], home: Figures) -> None:
    """Write the figures of a finished training, its page with samples, and the model's card."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
    write_nano_page(folder, recipe.transformer, home)
    write_card(folder / "model", recipe, figures, _json(folder / "seconds.json") or {})


def _charts(folder: Path) -> list[tuple[str, Any]]:
    charts = []
    psnr: dict[str, tuple[list[float], list[float]]] = {}
    done = 0.0
    for part in sorted(folder.glob("vae-*"), key=lambda path: path.stat().st_ctime):
        events = [e for e in _json(part / "curve.json") or [] if "psnr" in e]
        if events:
            psnr[part.name] = ([done + e["step"] for e in events], [e["psnr"] for e in events])
            done += events[-1]["step"]
    if psnr:
        charts.append(("Held-out reconstruction", progress_curve(psnr, "PSNR in dB", "steps, stage after stage")))
    names = {"held_out_image_accuracy": "caption to first frame", "held_out_video_accuracy": "caption to video"}
    events = [e for e in _json(folder / "encoders" / "curve.json") or [] if next(iter(names)) in e]
    if events:
        steps = [e["step"] for e in events]
        curves = {shown: (steps, [e[name] for e in events]) for name, shown in names.items()}
        title = "Encoders: the right caption of the held-out ones is found"
        charts.append((title, progress_curve(curves, "share", "step")))
    return charts


def _training(folder: Path, settings: TrainSettings) -> Training | None:
    events = training_curve(folder / "transformer")
    return Training.of(settings, events) if events else None


def _scenes(home: Figures) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    scenes = []
    for i, sample in list(enumerate(home.samples))[:_SCENES]:
        rows = {"real": sample.frames, "nano": home.videos["nano"][i], "random weights": home.videos["random"][i]}
        scenes.append((sample.caption, [(name, strip(frames, _SHOWN, 80)) for name, frames in rows.items()]))
    return scenes


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
