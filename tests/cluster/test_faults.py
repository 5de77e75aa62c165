"""The page on faults names tests that exist, and the time-outs that heads are started with."""

from __future__ import annotations

import re

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
