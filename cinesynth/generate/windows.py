"""Which held-out windows are generated, and what evaluation gets beside them: the real videos and `groups.csv`."""

from __future__ import annotations

import csv
import io

from cinesynth.config import GenerateConfig
from cinesynth.data.dataset import ClipsDataset, WindowRow, groups_csv, pixels_file
from cinesynth.data.spread import some_of
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage

GROUPS = "groups.csv"


def held_out_windows(config: GenerateConfig, dataset: ClipsDataset) -> list[WindowRow]:
    """At most `max_windows` windows of the split, one of each group before a second; in the dataset's order.

    Raises DatasetError when the split is empty.
    """
    windows = dataset.windows(config.split)
    if not windows:
        raise DatasetError(
            f"dataset {config.dataset!r} has no window in its {config.split} split: a domain with "
            "fewer than 3 groups is trained on whole; add footage, or raise the split's share"
        )
    return some_of(windows, config.max_windows)


def settle_windows(run: Storage, config: GenerateConfig, dataset: ClipsDataset) -> list[WindowRow]:
    """The windows of a run: those that its `groups.csv` lists already, else `held_out_windows`, which it then lists.

    So a run that continues makes what it began with, whatever a later version would choose.
    """
    if run.exists(GROUPS):
        kept = {row["video"] for row in csv.DictReader(io.StringIO(run.read_text(GROUPS)))}
        return [w for w in dataset.windows(config.split) if w.window_id in kept]
    windows = held_out_windows(config, dataset)
    run.write_text(GROUPS, groups_csv(windows))
    return windows


def copy_real(run: Storage, dataset: ClipsDataset, windows: list[WindowRow]) -> None:
    """Copy the pixels of the windows to `videos/real`. Other files there are removed: a run that was killed before
    `groups.csv` was written may have left some of another choice."""
    wanted = {f"videos/real/{w.window_id}.mkv": pixels_file(w.window_id) for w in windows}
    there = set(run.list("videos/real"))
    for name in there - wanted.keys():
        run.delete(name)
    for name, source in wanted.items():
        if name not in there:
            run.write_bytes(name, dataset.storage.read_bytes(source))
