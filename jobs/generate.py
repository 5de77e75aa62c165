"""Make videos from images and prompts, or from a dataset's held-out windows.

`python -m jobs.generate --config jobs/configs/nano/generate.yaml name=... 'shots=[{image: a.png, prompt: ...}]'`
"""

from typing import Any

from cinesynth.config import GenerateConfig
from cinesynth.outline import Outline
from jobs.entry import run_job


def job(config: GenerateConfig) -> dict[str, Any]:
    """Make videos from images and prompts, or from a dataset's held-out windows."""
    from cinesynth.generate.driver import generate

    return generate(config)


def outline(config: GenerateConfig) -> Outline:
    """What the job would do."""
    from cinesynth.generate.outline import outline_generation

    return outline_generation(config)


if __name__ == "__main__":
    run_job(GenerateConfig, job, outline)
