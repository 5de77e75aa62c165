"""Filmstrips of what a training's checkpoints made of a few held-out windows."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cinesynth.data.video import read_video
from cinesynth.report.filmstrips import Scene, Strip
from cinesynth.report.images import strip, strip_places
from cinesynth.storage import Storage
from cinesynth.train.validations import FOLDER, video_file


def validation_scenes(
    run: Storage, records: Mapping[int, dict[str, Any]], count: int = 2, rows: int = 5
) -> list[Scene]:
    """Filmstrips of what a training's checkpoints made of a few windows, below the real ones; the page lies in `run`.

    Args:
        run: the training's folder.
        records: of its validations, by step ascending.
        count: windows: of different groups, in the order of a hash.
        rows: checkpoints: the first, the last, and some evenly between.
    """
    if not records:
        return []
    windows = sorted(records[max(records)]["windows"], key=lambda w: hashlib.sha256(w["video"].encode()).hexdigest())
    first_of_group = list({w["group"]: w for w in reversed(windows)}.values())[::-1]
    steps = [list(records)[place] for place in strip_places(len(records), rows)]
    scenes = []
    with tempfile.TemporaryDirectory(prefix="cinesynth-report-") as scratch:
        for window in first_of_group[:count]:
            strips: list[Strip] = []
            places: list[int] = []
            for step in (None, *steps):
                arm, file = "real" if step is None else f"step {step:,}", video_file(step, window["video"])
                inside = run.child(FOLDER)
                if not inside.exists(file):
                    strips.append(Strip(arm, [], ""))
                    continue
                frames, _ = read_video(inside.download(file, Path(scratch) / "video.mp4"))
                places = strip_places(len(frames), 6)
                strips.append(Strip(arm, strip(frames, 6), f"{FOLDER}/{file}"))
            scenes.append(Scene(window["video"], window["caption"], "", places, strips))
    return scenes
