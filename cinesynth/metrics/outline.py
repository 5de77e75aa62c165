"""What an evaluation would do: which sets, how large, by which metrics."""

from __future__ import annotations

from pathlib import Path

from cinesynth.config import EvaluateConfig
from cinesynth.locate import locate_dataset
from cinesynth.metrics.videos import list_videos
from cinesynth.outline import Facts, Outline, cluster_of, sized, state_of, worker_fact
from cinesynth.storage import Storage, public_uri


def outline_evaluation(config: EvaluateConfig) -> Outline:
    """List the videos without decoding any. Raises CinesynthError for a folder without videos."""
    sets: Facts = []
    if not isinstance(config.real, str):
        dataset = locate_dataset(Storage.open(config.storage), config.real.dataset)
        windows = sized(len(dataset.windows(config.real.split)), "window")
        sets.append(("real", f"{dataset.storage.uri}, split {config.real.split}: those of {windows} that arms have"))
    folders = {"real": config.real, **config.arms} if isinstance(config.real, str) else config.arms
    for name, uri in folders.items():
        storage = Storage.open(uri)
        found = "on an object store: copied here first"
        if storage.is_local:
            found = sized(len(list_videos(name, Path(storage.path))), "video")
        sets.append((name, f"{public_uri(uri)}: {found}"))
    own = "each video its own" if isinstance(config.real, str) else "those of the dataset"
    sets.append(("groups", own if config.groups is None else public_uri(config.groups)))
    return Outline(
        title=f"evaluate {config.name}",
        state=state_of(config, None),
        inputs=sets,
        work=[
            ("metrics", ", ".join(config.metrics)),
            ("frames", "all of each video" if config.frames is None else f"the first {config.frames}"),
            ("baseline", f"{next(iter(config.arms))}: differences are to it"),
        ],
        resources=[
            cluster_of(config),
            worker_fact(config.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0, config.resources),
        ],
    )
