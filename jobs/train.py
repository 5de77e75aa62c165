"""Fine-tune a LoRA adapter: `python -m jobs.train --config jobs/configs/nano/style.yaml name=... dataset=...`."""

from cinesynth.config import TrainConfig
from cinesynth.train.driver import train
from jobs.entry import run_job

if __name__ == "__main__":
    run_job(TrainConfig, train)
