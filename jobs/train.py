"""Fine-tune a LoRA adapter: `python -m jobs.train --config jobs/configs/nano/style.yaml name=... dataset=...`."""

from typing import Any

from cinesynth.config import TrainConfig
from cinesynth.outline import Outline
from jobs.entry import run_job


def job(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune a LoRA adapter on a clips dataset."""
    from cinesynth.train.driver import train

    return train(config)


def outline(config: TrainConfig) -> Outline:
    """What the job would do."""
    from cinesynth.train.outline import outline_training

    return outline_training(config)


if __name__ == "__main__":
    run_job(TrainConfig, job, outline)
