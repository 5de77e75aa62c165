"""Answer a research question from many runs: `python -m jobs.study NAME --config jobs/configs/nano/study.yaml`."""

from __future__ import annotations

import sys
from typing import Any

from cinesynth.outline import Outline
from cinesynth.runs import FAILED
from cinesynth.studies.config import STUDIES, StudyConfig
from jobs.entry import run_job


def job(config: StudyConfig) -> dict[str, Any]:
    """Run what a study lacks, and write its page. The study is named first: `python -m jobs.study rank_quality`. Exit
    code 1: some of its cells failed; the others are there, and the page says why."""
    from cinesynth.studies.driver import run_study

    return run_study(config)


def outline(config: StudyConfig) -> Outline:
    """What the job would do."""
    from cinesynth.studies.driver import outline_study

    return outline_study(config)


def overrides_of(argv: list[str]) -> list[str]:
    """The command line with the study's name, its first word, turned into an override."""
    if argv and not argv[0].startswith("-") and "=" not in argv[0]:
        return [*argv[1:], f"study={argv[0]}"]
    if (argv and argv[0] in ("-h", "--help")) or any(word.startswith("study=") for word in argv):
        return argv
    sys.exit(f"name a study first: python -m jobs.study NAME --config ...; known are {', '.join(STUDIES)}")


def main(argv: list[str]) -> None:
    """Run the command line."""
    result = run_job(StudyConfig, job, outline, overrides_of(argv))
    if result is not None and result["status"] == FAILED:
        print(f"error: {result['reason']}", file=sys.stderr, flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
