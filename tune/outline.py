"""What a study would do: how many trials, of what, how many at once."""

from __future__ import annotations

from cinesynth.config import TuneConfig
from cinesynth.outline import Outline, cluster_of, sized, state_of, worker_fact
from tune.space import Point, distributions
from tune.study import check_study


def outline_study(config: TuneConfig) -> Outline:
    """Check everything that a study checks before a trial starts. Raises CinesynthError as `tune_study` does."""
    checked = check_study(config)
    seeds, final = config.baseline_seeds - 1, 2 * config.final_seeds
    trials = config.budget.trials
    steps = config.train.optimizer.steps
    at_once = config.concurrency or "as many as the cluster holds"
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
            ("objectives", " and ".join(config.objectives)),
            (
                "trainings",
                f"{trials} trials + {seeds} more of the baseline + {final} of the comparison = "
                f"{trials + seeds + final}, {(trials + seeds + final) * steps:,} steps at most",
            ),
        ],
        resources=[
            cluster_of(config),
            ("at once", str(at_once)),
            worker_fact(
                config.train.workers,
                config.train.cpus_per_worker,
                1.0 if config.train.use_gpu else 0.0,
                config.train.resources,
            ),
        ],
    )
