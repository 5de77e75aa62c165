"""Long clips part by part: each part of a video as a video of its own, so that every metric may be taken of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cinesynth.data.video import read_video, write_video
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage

FOLDER = "parts"


def part_frames(segment_frames: int, overlap: int) -> int:
    """Frames of a part: those from where a segment of a shot begins to where the next one does, which are as many as a
    segment adds.

    Args:
        segment_frames: of a segment.
        overlap: frames that two segments share beyond one.
    """
    return segment_frames - 1 - overlap


def part_folder(number: int, frames: int, arm: str) -> tuple[str, ...]:
    """Where the parts of an arm lie in a generation's folder; `number` counts from 0."""
    return FOLDER, f"{frames}-{number}", arm


def cut_parts(run: Storage, arm: str, number: int, frames: int) -> None:
    """Write one part of every video of an arm, without loss and under the same names. Parts that are there stay.

    Args:
        run: folder of a generation.
        arm: whose videos are cut; `real` for the real windows.
        number: of the part, from 0.
        frames: of a part.

    Raises DatasetError for a video that is too short.
    """
    start = number * frames
    folder = run.child(*part_folder(number, frames, arm))
    there = set(folder.list())
    for name in run.list(f"videos/{arm}"):
        file = f"{Path(name).stem}.mkv"
        if file in there:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            video, fps = read_video(run.download(name, Path(scratch) / Path(name).name))
            if len(video) < start + frames:
                raise DatasetError(
                    f"{run.uri}/{name} has {len(video)} frames: no part {number} of {frames}; give longer windows"
                )
            part = write_video(Path(scratch) / "part.mkv", video[start : start + frames], fps, "ffv1")
            folder.upload(part, file)
