"""What an evaluation would do: which sets, how large, by which metrics."""

from __future__ import annotations

from pathlib import Path

from cinesynth.config import EvaluateConfig
from cinesynth.metrics.videos import list_videos
from cinesynth.outline import Facts, Outline, cluster_of, sized, state_of, worker_fact
from cinesynth.storage import Storage, public_uri


def outline_evaluation(config: EvaluateConfig) -> Outline:
    """List the videos without decoding any. Raises CinesynthError for a folder without videos."""
    sets: Facts = []
    for name, uri in {"real": config.real, **config.arms}.items():
        storage = Storage.open(uri)
        found = "on an object store: copied here first"
        if storage.is_local:
            found = sized(len(list_videos(name, Path(storage.path))), "video")
        sets.append((name, f"{public_uri(uri)}: {found}"))
    sets.append(("groups", "each video its own" if config.groups is None else public_uri(config.groups)))
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
            worker_fact(config.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0),
        ],
    )
