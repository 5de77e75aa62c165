"""The page of a generation: filmstrips of what it made, where its seconds went, and what it was made with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinesynth.config import GenerateConfig
from cinesynth.data.video import read_video
from cinesynth.report.filmstrips import Scene, Strip, make_scenes
from cinesynth.report.images import strip, strip_places
from cinesynth.report.page import write_page
from cinesynth.runs import Run

_SHOTS = 12
"""Most shots whose filmstrips are shown."""


def write_generation_report(
    config: GenerateConfig, run: Run, figures: Mapping[str, Any], adapters: Mapping[str, Sequence[str]]
) -> str:
    """Write `report.html` into the folder of a generation; returns its uri.

    Args:
        config: of the generation.
        run: with its videos.
        figures: its numbers; those of a run that made nothing anew have no seconds.
        adapters: arm to what is applied to the base, in words.
    """
    if config.split is not None:
        scenes = make_scenes(run.folder, run.folder, ["real", *adapters], {}, folder="shown")
    else:
        scenes = _shots(config, run)
    stages = {name.partition("/")[2]: value for name, value in figures.items() if name.startswith("seconds/")}
    sampler = config.sampler
    return write_page(
        run.folder,
        "report.html",
        "generation.html.j2",
        config=config,
        run=run,
        figures=figures,
        scenes=scenes,
        left_out=len(config.shots) - len(scenes) if config.shots else 0,
        stages=stages,
        facts=[
            ("steps", str(sampler.steps)),
            ("guidance", f"{sampler.guidance_scale:g}"),
            ("shift", "the model's own" if sampler.flow_shift is None else f"{sampler.flow_shift:g}"),
            ("seed", str(sampler.seed)),
            ("negative prompt", (sampler.negative_prompt or "empty") if sampler.guidance_scale > 1 else "none"),
            *((arm, ", ".join(applied) or "the base model") for arm, applied in adapters.items()),
            ("ranks of a video", str(config.ranks)),
            ("videos at once", str(config.workers)),
        ],
    )


def _shots(config: GenerateConfig, run: Run) -> list[Scene]:
    scenes = []
    with tempfile.TemporaryDirectory(prefix="cinesynth-report-") as scratch:
        for i, shot in enumerate(config.shots[:_SHOTS]):
            file = f"videos/{i:04d}.mp4"
            frames, _ = read_video(run.folder.download(file, Path(scratch) / "video.mp4"))
            made = Strip("video", strip(frames, 6), file)
            scenes.append(Scene(f"{i:04d}", shot.prompt, "", strip_places(len(frames), 6), [made]))
    return scenes
