"""Makes a review's folder: chooses windows that all arms have, writes their videos under opaque names, then the design.

All videos are encoded anew in the same way, without metadata, and bear one date: a file tells nothing of its arm.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

import cinesynth
from cinesynth.data.spread import in_turn
from cinesynth.data.video import inspect_video, read_video, write_video
from cinesynth.errors import ConfigError, DatasetError, IdentityError, MediaError, StorageError
from cinesynth.metrics.videos import content_hash, list_videos, parse_captions, parse_groups, read_groups
from cinesynth.pictures import Frames
from cinesynth.settings import differences
from cinesynth.storage import sha256_json
from cinesynth.studies.review.config import ReviewConfig
from cinesynth.studies.review.design import Clip, Window, make_design
from cinesynth.studies.review.folder import DESIGN, ReviewFolder, review_location
from cinesynth.wan.family import DEFAULT_FAMILY

log = logging.getLogger("cinesynth.review")

Files = Mapping[str, Mapping[str, Path]]
"""Source (arm or `real`) to window to file."""

_BLOCK = 8
_NOISE = 45.0


def make_review(config: ReviewConfig) -> ReviewFolder:
    """The review's folder; made once, and the same command then opens it.

    Raises:
        IdentityError: the review exists with another configuration, or was made of other videos.
        DatasetError: the arms share fewer than two windows.
        MediaError: a video cannot be read, or differs from its window's others in size, length or rate.
    """
    config.check_inputs()
    folder = review_location(config.storage, config.name)
    files = {arm: list_videos(arm, Path(path).expanduser()) for arm, path in config.arms.items()}
    if config.real is not None:
        files["real"] = list_videos("real", Path(config.real).expanduser())
    windows = choose_windows(config, files)
    used = {source: {w.id: of[w.id] for w in windows} for source, of in files.items()}
    inputs = {source: content_hash(of) for source, of in used.items()}
    inputs["windows"] = sha256_json([window.model_dump() for window in windows])
    if folder.exists(DESIGN):
        return _checked(ReviewFolder.open(config.storage, config.name), config, inputs)
    design = make_design(config, measured(windows, used), secrets.token_hex(16), cinesynth.__version__, inputs)
    for n, (name, clip) in enumerate(sorted(design.clips.items())):  # in the order of their names
        _write_clip(clip, used, Path(folder.path, "videos", f"{name}.mp4"), config.seed)
        if n % 20 == 19:
            log.info("%d/%d videos", n + 1, len(design.clips))
    text = json.dumps(design.model_dump(mode="json"), indent=1)
    if not folder.write_new(DESIGN, text.encode()):
        raise StorageError(f"{folder.uri} was made by another process meanwhile; give the command again")
    for leftover in folder.list("videos"):  # of a command that was stopped
        if Path(leftover).stem not in design.clips:
            folder.delete(leftover)
    return ReviewFolder(folder, design)


def choose_windows(config: ReviewConfig, files: Files) -> list[Window]:
    """Windows that all sources have, one of each group before a second; drawn by the seed, sorted by id.

    Raises DatasetError for fewer than two, and ConfigError where the groups leave one out.
    """
    shared = sorted(set.intersection(*(set(of) for of in files.values())))
    if len(shared) < 2:
        held = ", ".join(f"{source} {len(of)}" for source, of in files.items())
        raise DatasetError(f"arms: {len(shared)} videos have one name in all folders ({held}); a review needs 2")
    if alone := sum(len(set(of) - set(shared)) for of in files.values()):
        log.warning("%d videos have no other of their name in every folder, and are left out", alone)
    groups, captions = {key: key for key in shared}, dict[str, str]()
    if config.groups:
        text = read_groups(config.groups)
        groups, captions = parse_groups(text, config.groups), parse_captions(text)
        if missing := [key for key in shared if key not in groups]:
            raise ConfigError(f"groups: no group is given for {', '.join(missing[:3])}; add their rows")
    order = random.Random(f"windows {config.seed}").sample(shared, len(shared))
    chosen = in_turn(order, lambda key: groups[key])[: config.windows]
    return [Window(id=key, group=groups[key], caption=captions.get(key, "")) for key in sorted(chosen)]


def damaged(frames_THWC: Frames, seed: int) -> Frames:
    """The same video, so that anybody sees that it is worse: blocks of 8 pixels, noise, and frames out of order."""
    draw = np.random.default_rng(seed)
    frames, height, width = frames_THWC, *frames_THWC.shape[1:3]
    small = max(2, width // _BLOCK), max(2, height // _BLOCK)
    order = np.arange(len(frames))
    order = np.clip(order + draw.integers(-3, 4, len(order)), 0, len(order) - 1)
    found = np.empty_like(frames)
    for t, place in enumerate(order):
        blocks = cv2.resize(frames[place], small, interpolation=cv2.INTER_AREA)
        blocks = blocks + draw.normal(0, _NOISE, blocks.shape)
        found[t] = cv2.resize(blocks.clip(0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return found


def _write_clip(clip: Clip, files: Files, path: Path, seed: int) -> None:
    frames, fps = read_video(files[clip.source][clip.window])
    if clip.variant == "damaged":
        frames = damaged(frames, seed)
    write_video(path, frames, fps or DEFAULT_FAMILY.fps)
    os.utime(path, (0, 0))


def measured(windows: Sequence[Window], files: Files) -> list[Window]:
    """The windows with the size and rate of their videos, each of which is decoded once.

    Raises MediaError where one differs from the first source's of its window in size, length or rate.
    """
    return [_measured(window, [of[window.id] for of in files.values()]) for window in windows]


def _measured(window: Window, paths: Sequence[Path]) -> Window:
    facts = [inspect_video(path) for path in paths]
    told = [f"{f.width}x{f.height}, {f.num_frames} frames, {f.fps:.3g} fps" for f in facts]
    for path, other in zip(paths, told, strict=True):
        if other != told[0]:
            raise MediaError(
                f"{path} ({other}) differs from {paths[0]} ({told[0]}), and would be known by it; make them alike"
            )
    size = {"width": facts[0].width, "height": facts[0].height, "fps": facts[0].fps or DEFAULT_FAMILY.fps}
    return window.model_copy(update=size)


def _checked(review: ReviewFolder, config: ReviewConfig, inputs: Mapping[str, str]) -> ReviewFolder:
    """The review that is there, if it is the one that the configuration describes."""
    recorded = review.design
    changed = differences(recorded.identity, config, "identity.")
    changed += [
        f"inputs.{name}: {'groups or captions' if name == 'windows' else 'its videos'} have changed"
        for name in sorted({*inputs, *recorded.inputs})
        if inputs.get(name) != recorded.inputs.get(name)
    ]
    if changed:
        raise IdentityError(
            f"review {config.name!r} exists with another design ({'; '.join(changed)}); use another name, or restore "
            f"these values ({review.folder.uri})"
        )
    return review
