"""Search rank, alpha and learning rate: `python -m jobs.tune --config jobs/configs/nano/tune.yaml dataset=...`."""

from typing import Any

from cinesynth.config import TuneConfig
from cinesynth.outline import Outline
from jobs.entry import run_job


def job(config: TuneConfig) -> dict[str, Any]:
    """Search an adapter's rank, alpha and learning rate, and compare the recommended point with the baseline."""
    from tune.study import tune_study

    return tune_study(config)


def outline(config: TuneConfig) -> Outline:
    """What the job would do."""
    from tune.outline import outline_study

    return outline_study(config)


if __name__ == "__main__":
    run_job(TuneConfig, job, outline)
