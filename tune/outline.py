"""What a study would do: how many trials, of what, how many at once."""

from __future__ import annotations

import os

from cinesynth.config import TuneConfig
from cinesynth.outline import Outline, cluster_of, sized, state_of, worker_fact
from cinesynth.session import ray_session
from tune.check import check_study
from tune.halving import rung_steps
from tune.space import Point, distributions, every_point, wanted_points
from tune.study import trials_at_once


def outline_study(config: TuneConfig) -> Outline:
    """Check everything that a study checks before a trial starts. Raises CinesynthError as `tune_study` does."""
    checked = check_study(config)
    seeds, final = config.baseline_seeds - 1, 2 * config.final_seeds
    trials = wanted_points(config)
    steps = config.train.optimizer.steps
    return Outline(
        title=f"tune {config.name}",
        state=state_of(config, checked.inputs),
        inputs=[
            ("dataset", f"{checked.dataset.storage.uri} ({checked.inputs['dataset'][:12]})"),
            ("scored on", f"{sized(checked.windows, 'window')} of the val split"),
            ("base", f"{config.model} ({checked.inputs['base'][:12]})"),
        ],
        work=[
            ("baseline", Point.of(config.train).told()),
            ("searched", ", ".join(f"{name} {told}" for name, told in distributions(config.space).items())),
            ("drawn", _drawn(config)),
            ("objectives", " and ".join(config.objectives)),
            (
                "trainings",
                f"{trials} trials + {seeds} more of the baseline + {final} of the comparison = "
                f"{trials + seeds + final}, {(trials + seeds + final) * steps:,} steps at most",
            ),
        ],
        resources=[
            cluster_of(config),
            ("at once", _at_once(config)),
            worker_fact(
                config.train.workers,
                config.train.cpus_per_worker,
                1.0 if config.train.use_gpu else 0.0,
                config.train.resources,
            ),
        ],
    )


def _drawn(config: TuneConfig) -> str:
    every = every_point(config)
    told = config.method if every is None else f"{config.method}, of {sized(len(every), 'point')}"
    if config.warm_start:
        told += f", with what {', '.join(config.warm_start)} found"
    if config.asha is not None:
        rungs = ", ".join(str(step) for step in rung_steps(config.asha, config.train))
        told += f"; one in {config.asha.factor} goes on at step {rungs}"
    return told


def _at_once(config: TuneConfig) -> str:
    """How many trials run at once, as the cluster that is named says; else what they are limited by."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    stage = config.train
    each = f"a trial takes {sized(stage.workers, 'worker')}" + (", the scorer one more GPU" if stage.use_gpu else "")
    if not address or address == "local":
        most = f"{config.concurrency} trials at most" if config.concurrency else "as many trials as the cluster holds"
        return f"{most}; {each}"
    with ray_session(config):
        return f"{sized(trials_at_once(config), 'trial')} in this cluster; {each}"
