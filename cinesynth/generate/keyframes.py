"""Keyframes: a reference image in the style of an adapter, as the first frame of a shot.

The reference, held still for a few frames, is noised to sigma and denoised from there (SDEdit, arXiv 2108.01073) with
the shot's adapters. The model is given the reference as the first frame, so that one changes least: the last frame is
the keyframe. At sigma near 0 that is the reference; the higher sigma, the farther it goes from it. Of several
candidates, each with noise of its own, the one that is closest to the reference is taken: by LPIPS, or by CLIP's image
embeddings where weights are given, which mind a change of style less.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cinesynth.config import KeyframeSettings
from cinesynth.data.video import read_video
from cinesynth.generate.group import RankGroup
from cinesynth.generate.held_out import window_seed
from cinesynth.generate.messages import VideoRequest
from cinesynth.metrics.networks.clip import Clip
from cinesynth.metrics.networks.lpips import frame_distances, load_lpips
from cinesynth.pictures import Frames, crop_to, png_bytes, read_picture
from cinesynth.storage import Storage


def make_keyframe(group: RankGroup, request: VideoRequest, settings: KeyframeSettings) -> tuple[bytes, dict[str, Any]]:
    """Have a group make a shot's keyframe; returns it as a PNG, and what is known of it.

    It is kept as `keyframes/<shot>.png`, its candidates as `keyframes/<shot>/<number>.png`; what is there is not made
    again.

    Args:
        group: that makes it.
        request: of the shot; its image is the reference.
        settings: sigma, frames, number of candidates.
    """
    assert request.image is not None
    output = Storage(*request.output)
    name = f"keyframes/{Path(request.file).stem}"
    if not output.exists(f"{name}.json"):
        reference = np.asarray(crop_to(read_picture(request.image), request.height, request.width))
        called, distance = _measure(settings)
        distances = []
        for number in range(settings.candidates):
            file = f"{name}/{number}.png"
            if not output.exists(file):
                made = _candidate(group, request, settings, output, f"{name}/{number}.mkv", number)
                output.write_bytes(file, png_bytes(made))
            distances.append(distance(reference, np.asarray(read_picture(output.read_bytes(file)))))
        best = int(np.argmin(distances))
        output.write_bytes(f"{name}.png", output.read_bytes(f"{name}/{best}.png"))
        output.write_json(f"{name}.json", {"sigma": settings.sigma, called: distances, "candidate": best})
    told: dict[str, Any] = output.read_json(f"{name}.json")
    return output.read_bytes(f"{name}.png"), told


def _candidate(
    group: RankGroup, request: VideoRequest, settings: KeyframeSettings, output: Storage, file: str, number: int
) -> Frames:
    """[H, W, 3]: the last frame of what is made of the reference."""
    seed = window_seed(request.sampler.seed, f"keyframe {number}")
    sampler = request.sampler.model_copy(update={"seed": seed})
    group.start(
        replace(
            request,
            file=file,
            num_frames=settings.frames,
            sampler=sampler,
            start_sigma=settings.sigma,
            state=request.state and f"{file}.state",
        )
    )
    group.result()
    with tempfile.TemporaryDirectory() as scratch:
        frames, _ = read_video(output.download(file, Path(scratch) / "candidate.mkv"))
    output.delete(file)
    return frames[-1]


def _measure(settings: KeyframeSettings) -> tuple[str, Callable[[Frames, Frames], float]]:
    """What candidates are compared by: its name, and the distance of two pictures."""
    if settings.clip is not None:
        return "clip", Clip.load(settings.clip.model, settings.clip.weights).distance
    lpips = load_lpips()
    return "lpips", lambda one, other: float(frame_distances(lpips, one[None], other[None])[0])
