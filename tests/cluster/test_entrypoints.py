"""The commands that the cluster files and their page name are planned, each with `dry_run=true`.

A folder with nano's layout stands in the hub id's place, and a local storage in a bucket's.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.tiny_dataset import model_and_footage

FILES = ("cluster/aws/a100.yaml", "cluster/gcp/a100.yaml", "cluster/slurm/cinesynth.sbatch", "docs/clusters.md")
COMMAND = re.compile(r"(?:python -m jobs\.submit|sbatch cluster/slurm/cinesynth\.sbatch) (\w+) (.*)")


def commands(name: str) -> list[tuple[str, list[str]]]:
    """(job, arguments) of each submission that a file shows, in a comment or a block."""
    text = (REPOSITORY / name).read_text()
    plain = "\n".join(re.sub(r"^#+ {0,3}", "", line) for line in text.splitlines())
    joined = re.sub(r"\\\n\s*", " ", plain)
    return [(job, shlex.split(rest)) for job, rest in COMMAND.findall(joined) if job.islower()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and footage."""
    return model_and_footage(tmp_path_factory.mktemp("entrypoints"))


@pytest.mark.parametrize("name", FILES)
def test_each_submission_is_planned(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = commands(name)
    assert shown, f"{name} names no submission"
    monkeypatch.chdir(REPOSITORY)
    for job, arguments in shown:
        here = [
            f"storage={place / 'storage'}",
            f"model={place / 'model'}",
            f"prepare.footage.0.path={place / 'footage'}",
            "prepare.window.sizes=480p",  # the small model has no positions for 720p's widest
        ]
        monkeypatch.setattr(sys, "argv", [f"jobs.{job}", *arguments, *here, "dry_run=true"])
        runpy.run_module(f"jobs.{job}", run_name="__main__")
        told = capsys.readouterr().out
        assert told.rstrip().endswith("dry run: nothing was started or written")
        assert "A100-80G, cinesynth.io/pool=a100 or a100-spot" in told
        reads = "on cinesynth.io/pool=data, where files are hashed and scanned"
        assert (reads in told) == ("prepare.resources.decode.labels={}" not in arguments)
    assert not (place / "storage").exists()
