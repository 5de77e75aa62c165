"""The real side of an evaluation, where it is a dataset's held-out split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cinesynth.config import DatasetSplit
from cinesynth.data.dataset import groups_csv, pixels_file
from cinesynth.errors import DatasetError
from cinesynth.locate import locate_dataset
from cinesynth.metrics.videos import list_videos
from cinesynth.storage import Storage


def real_windows(
    storage: Storage, real: DatasetSplit, arms: Mapping[str, Path], folder: Path
) -> tuple[str, dict[str, str]]:
    """Copy the pixels of the windows that an arm has a video of to `folder`; returns a groups file and their domains.

    Args:
        storage: where the dataset lies, if it is given by its name.
        real: the split.
        arms: arm name to its folder; videos are named as windows are, as `jobs.generate` names them.
        folder: does not exist yet.

    Raises DatasetError where no arm has a video of a window.
    """
    dataset = locate_dataset(storage, real.dataset)
    made = {name for arm, videos in arms.items() for name in list_videos(f"arms.{arm}", videos)}
    windows = [w for w in dataset.windows(real.split) if w.window_id in made]
    if not windows:
        raise DatasetError(
            f"real: no video of {' or '.join(arms)} is named like a window of the {real.split} split of "
            f"{real.dataset!r} (such as {next(iter(sorted(made)))!r}); give the dataset that they were generated from"
        )
    folder.mkdir()
    for window in windows:
        (folder / f"{window.window_id}.mkv").write_bytes(dataset.storage.read_bytes(pixels_file(window.window_id)))
    return groups_csv(windows), {window.window_id: window.domain for window in windows}
