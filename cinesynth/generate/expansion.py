"""A shot longer than the model makes at once: segments, each begun by a frame of the one before.

With an overlap of `o` frames, a segment begins at the frame that lies `o` before the last one of the segment before it.
The frames that both have are blended, from the earlier to the later one. Without overlap they share one frame, which is
the earlier segment's.

A model's colours and brightness drift from the frame that it was given. So a segment is levelled before it is joined:
the smooth part of what the shared frames differ by is added to all of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from cinesynth.data.video import read_metadata, read_video, write_video
from cinesynth.generate.group import RankGroup
from cinesynth.generate.held_out import window_seed
from cinesynth.generate.messages import VideoRequest
from cinesynth.pictures import Frames, png_bytes
from cinesynth.storage import Storage, sha256_file
from cinesynth.wan.family import Family

SMOOTH = 0.125
"""Standard deviation of the Gaussian that calls a difference smooth, as a share of the picture's shorter side."""


@dataclass(frozen=True)
class Segment:
    """A part of a shot: its first frame in the shot, and how many frames it has."""

    start: int
    frames: int


def segments_of(family: Family, frames: int, most: int, overlap: int) -> list[Segment]:
    """The segments of a shot, in order; the last one may reach beyond its end.

    Args:
        family: whose lengths segments have.
        frames: of the shot.
        most: frames of a segment; a length of the family.
        overlap: frames that two segments share beyond one; less than `most - 1`.
    """
    if frames <= most:
        return [Segment(0, frames)]
    step = most - 1 - overlap
    found = [Segment(start, most) for start in range(0, frames - most + step, step)]
    rest = frames - found[-1].start
    stride = family.temporal_stride
    found[-1] = Segment(found[-1].start, min(most, stride * -(-(rest - 1) // stride) + 1))
    return found


def join(parts: Sequence[Frames], segments: Sequence[Segment], frames: int) -> Frames:
    """One video of the segments' frames [T, H, W, 3], uint8; each is levelled, and what two have is blended."""
    whole = np.zeros((frames, *parts[0].shape[1:]), np.uint8)
    filled = 0
    for segment, part in zip(segments, parts, strict=True):
        part = part[: frames - segment.start]
        shared = min(max(0, filled - segment.start), len(part))
        if shared:
            part = _levelled(part, whole[segment.start : segment.start + shared])
        for i in range(shared):
            weight = i / (shared - 1) if shared > 1 else 0.0
            before = whole[segment.start + i].astype(np.float32)
            whole[segment.start + i] = np.rint((1 - weight) * before + weight * part[i]).astype(np.uint8)
        whole[segment.start + shared : segment.start + len(part)] = part[shared:]
        filled = max(filled, segment.start + len(part))
    assert filled == frames
    return whole


def _levelled(part: Frames, before: Frames) -> Frames:
    """A segment's frames, brought to the level of the earlier segment's at its beginning."""
    shared = len(before)
    difference_HWC = before.mean(axis=0, dtype=np.float32) - part[:shared].mean(axis=0, dtype=np.float32)
    smooth = cv2.GaussianBlur(difference_HWC, (0, 0), SMOOTH * min(difference_HWC.shape[:2]))
    levelled = np.empty_like(part)
    for i, frame in enumerate(part):  # one by one: a segment in float32 would take gigabytes
        levelled[i] = np.rint(np.clip(frame + smooth, 0, 255)).astype(np.uint8)
    return levelled


def make_shot(group: RankGroup, request: VideoRequest, segments: Sequence[Segment], fps: int) -> dict[str, Any]:
    """Have a group make a shot segment by segment; returns as `RankGroup.result` does, with `segments` in it.

    Segments that are there already, from an attempt that was cut short, are not made again.
    """
    output = Storage(*request.output)
    folder = f"segments/{Path(request.file).relative_to('videos').with_suffix('')}"
    files = [f"{folder}/{i:03d}.mkv" for i in range(len(segments))]
    seconds: dict[str, float] = {}
    image = request.image
    for i, (segment, file) in enumerate(zip(segments, files, strict=True)):
        if not output.exists(file):
            seed = request.sampler.seed if i == 0 else window_seed(request.sampler.seed, f"segment {i}")
            part = replace(
                request,
                file=file,
                image=image,
                num_frames=segment.frames,
                sampler=request.sampler.model_copy(update={"seed": seed}),
                state=request.state and f"{file}.state",
            )
            group.start(part)
            for stage, spent in group.result()["seconds"].items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
        if i + 1 < len(segments):
            image = png_bytes(_read(output, file)[segments[i + 1].start - segment.start])
    with tempfile.TemporaryDirectory() as scratch:
        parts: list[Frames] = []
        provenance: dict[str, Any] = {}
        for file in files:
            path = output.download(file, Path(scratch) / "segment.mkv")
            parts.append(read_video(path)[0])
            provenance = provenance or read_metadata(path)
        provenance = {**provenance, "segments": [[s.start, s.frames] for s in segments]}
        frames = join(parts, segments, request.num_frames)
        suffix = Path(request.file).suffix
        codec: Literal["h264", "ffv1"] = "h264" if suffix == ".mp4" else "ffv1"
        shot = write_video(Path(scratch) / f"shot{suffix}", frames, fps, codec, provenance)
        output.upload(shot, request.file)
        sha256 = sha256_file(shot)
    output.delete_folder(folder)
    return {"sha256": sha256, "provenance": provenance, "seconds": seconds}


def _read(output: Storage, file: str) -> Frames:
    with tempfile.TemporaryDirectory() as scratch:
        return read_video(output.download(file, Path(scratch) / "segment.mkv"))[0]
