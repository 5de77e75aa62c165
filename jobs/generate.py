"""Make videos from images and prompts, or from a dataset's held-out windows.

`python -m jobs.generate --config jobs/configs/nano/generate.yaml name=... 'shots=[{image: a.png, prompt: ...}]'`
"""

from cinesynth.config import GenerateConfig
from cinesynth.generate.driver import generate
from jobs.entry import run_job

if __name__ == "__main__":
    run_job(GenerateConfig, generate)
