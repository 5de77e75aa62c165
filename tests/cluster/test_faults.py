"""The page on faults names tests that exist, and the time-outs that heads are started with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cluster.faults import HEAD_TIMEOUTS
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "faults.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    written = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in written} == set()
    assert all((REPOSITORY / path).exists() for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE))


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.partition("## ")[0].splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"`(test_\w+|tests/[\w/]+\.py)` *[,|]", row)] == []


def test_the_page_has_the_time_outs_of_a_head() -> None:
    table = {
        name: value
        for row in PAGE.splitlines()
        if row.startswith("| `RAY_")
        for cells in [row.split("|")]
        for name, value in zip(re.findall(r"`(RAY_\w+)`", cells[1]), cells[2].replace(" ", "").split(","), strict=True)
    }
    assert table == HEAD_TIMEOUTS


@pytest.mark.parametrize("file", ["aws/a100.yaml", "gcp/a100.yaml"])
def test_the_heads_of_clouds_are_started_with_the_time_outs(file: str) -> None:
    started = yaml.safe_load((REPOSITORY / "cluster" / file).read_text())["head_start_ray_commands"][-1]
    before = started.partition("ray start --head")[0]
    given = dict(word.split("=", 1) for word in before.split() if "=" in word)
    assert given.items() >= HEAD_TIMEOUTS.items()


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "cluster/kuberay/workloads").glob("*.yaml")), ids=lambda f: f.stem
)
def test_the_heads_of_kubernetes_have_the_time_outs(file: Path) -> None:
    (given,) = [d for d in yaml.safe_load_all(file.read_text()) if d and d["kind"].startswith("Ray")]
    cluster = given["spec"].get("rayClusterSpec") or given["spec"].get("rayClusterConfig") or given["spec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert {e["name"]: e.get("value") for e in head["env"]}.items() >= HEAD_TIMEOUTS.items()


def test_the_head_of_a_slurm_job_has_the_time_outs() -> None:
    script = (REPOSITORY / "cluster/slurm/cinesynth.sbatch").read_text().partition("ray symmetric-run --address")[0]
    assert dict(re.findall(r"^export (RAY_\w+)=(\S+)$", script, re.MULTILINE)) == HEAD_TIMEOUTS
