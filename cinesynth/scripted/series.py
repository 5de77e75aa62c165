"""A series of scripted clips: rendered from a seed, and written as files with captions and cuts beside them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cinesynth.data.video import write_video
from cinesynth.scripted.rendering import render_shot
from cinesynth.scripted.screenplay import Screenplay, draw_screenplay, sample_captions
from cinesynth.scripted.vocabulary import vocabulary_of

__all__ = ["ScriptedClip", "sample_captions", "scripted_clip", "write_scripted_clips"]

GENERATOR_VERSION = 4  # raised whenever a change alters frames or captions: folders of older versions are rewritten
_MANIFEST = ".scripted.manifest"  # hidden: it is no footage
_OLDER_MANIFEST = "scripted.manifest"


@dataclass(frozen=True)
class ScriptedClip:
    """One rendered clip.

    Attributes:
        frames: uint8 RGB [T, H, W, 3].
        fps: frames per second.
        caption: what happens in the whole clip.
        cuts: index of the first frame after each hard cut, ascending.
        shot_captions: one caption for each shot, `len(cuts) + 1` of them.
    """

    frames: NDArray[np.uint8]
    fps: float
    caption: str
    cuts: list[int]
    shot_captions: list[str]


def scripted_clip(
    seed: int,
    index: int,
    height: int = 96,
    width: int = 144,
    fps: float = 24,
    photographs: tuple[str, ...] = (),
    look: str | None = None,
    seconds: float | None = None,
) -> ScriptedClip:
    """Render clip `index` of the series `seed`, a pure function of the arguments.

    Args:
        seed, index: which clip.
        height, width, fps: of the frames.
        photographs: keys of `PHOTOGRAPHS` that serve as textures beside the drawn ones.
        look: None is the plain world. `film`: grade, grain, letterbox and a push-in on every shot, for "film look" in
            its caption. `historical` and `sci-fi`: worlds of their own, with other sets, props, light, camera and
            grade; captions end with "historical drama" or "science fiction".
        seconds: the clip is one shot of this length. None: 3.5 to 5 s, in one clip of six with cuts.

    Raises ConfigError for an unknown look, and for a length below 1 or above 60 seconds.
    """
    play = draw_screenplay(seed, index, photographs, look, seconds)
    parts = [
        render_shot(shot, count, fps, height, width)
        for shot, count in zip(play.shots, _frame_counts(play, fps), strict=True)
    ]
    cuts = np.cumsum([len(part) for part in parts])[:-1].tolist()
    return ScriptedClip(np.concatenate(parts), fps, play.caption, cuts, [shot.caption for shot in play.shots])


def write_scripted_clips(
    folder: str | os.PathLike[str],
    count: int,
    seed: int,
    height: int = 96,
    width: int = 144,
    fps: float = 24,
    photographs: tuple[str, ...] = (),
    look: str | None = None,
    seconds: float | None = None,
) -> list[Path]:
    """Write clips 0..count-1 of a series as MP4 with sidecars; returns the video files. Arguments as `scripted_clip`.

    Beside each `scripted-0000.mp4` lie `scripted-0000.txt` (caption) and `scripted-0000.json` (cuts as frame
    indices; start, end and caption of each shot; group, domain, seed and index). A complete folder of the same
    parameters is kept; after any other parameters all clips are written anew, and clips beyond `count` are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scripted-{index:04d}.mp4" for index in range(count)]
    series = {"height": height, "width": width, "fps": fps, "photographs": photographs, "look": look}
    wanted = json.dumps({"version": GENERATOR_VERSION, "count": count, "seed": seed, "seconds": seconds, **series})
    manifest = folder / _MANIFEST
    if (folder / _OLDER_MANIFEST).is_file():
        (folder / _OLDER_MANIFEST).replace(manifest)
    complete = manifest.is_file() and manifest.read_text() == wanted
    if complete and all(p.with_suffix(s).is_file() for p in paths for s in (".mp4", ".txt", ".json")):
        return paths
    manifest.unlink(missing_ok=True)
    for stale in folder.glob("scripted-[0-9][0-9][0-9][0-9]*.*"):
        stale.unlink()
    for index, path in enumerate(paths):
        clip = scripted_clip(seed, index, height, width, fps, photographs, look, seconds)
        path.with_suffix(".txt").write_text(clip.caption + "\n")
        path.with_suffix(".json").write_text(json.dumps(_sidecar(clip, seed, index, look), indent=1) + "\n")
        write_video(path, clip.frames, fps=fps)
    manifest.write_text(wanted)
    return paths


def _frame_counts(play: Screenplay, fps: float) -> list[int]:
    return [max(1, round(shot.duration * fps)) for shot in play.shots]


def _sidecar(clip: ScriptedClip, seed: int, index: int, look: str | None) -> dict[str, Any]:
    edges = [0, *clip.cuts, len(clip.frames)]
    shots = [
        {"start_s": start / clip.fps, "end_s": end / clip.fps, "caption": caption}
        for start, end, caption in zip(edges[:-1], edges[1:], clip.shot_captions, strict=True)
    ]
    # The group, and with it the split, is named after the screenplay: it survives another video encoder. The plain and
    # the film look share their screenplays.
    domain = vocabulary_of(look).domain
    world = "scripted" if look == "film" else domain
    return {
        "caption": clip.caption,
        "group": f"{world}-{seed}-{index}",
        "domain": domain,
        "cuts": clip.cuts,
        "shots": shots,
        "seed": seed,
        "index": index,
    }
