"""The commands of the documentation hold: tags, programs, options, fields and files; and those tagged `run` are run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.local import LocalHead
from docs.commands import RUN, blocks, pages, problems
from tests.conftest import REPOSITORY

QUICK_START = REPOSITORY / "docs" / "quickstart.md"
RUN_PAGES = [page for page in pages() if any(block.tag == RUN for block in blocks(page))]
LIMIT_S = 600
"""Of one block that is run."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood_by_their_programs(page: Path) -> None:
    assert [str(problem) for problem in problems(page)] == []


GOOD = """\
```sh check
STORAGE=/data/cinesynth   # a folder that every node sees
ray job submit --working-dir . --metadata-json '{"job_name": "noir"}' -- \\
    python -m jobs.train --config jobs/configs/nano/style.yaml storage=$STORAGE name=noir 'lora={rank: 4}'
python -m serve.run --config serve/config/nano.yaml storage=$STORAGE port=8001
python -m jobs.study rank_quality --config jobs/configs/nano/study.yaml | tee "$(python -m serve.keys list --file k)"
python -m jobs.evaluate --real real --fake base=made && make demo
curl http://127.0.0.1:8000/v1/videos/video_ID/content -o out.mp4
```
```yaml check: jobs.generate
name: shots
shots: [{image: a.png, prompt: dunes, num_frames: 17, width: 96, height: 64}]
```
```yaml file: mine.yaml
name: mine
dataset: clips
stage: style
```
```sh check
python -m jobs.train --config mine.yaml storage=$STORAGE
```
"""
TYPOS = [
    ("jobs.train --config", "jobs.trian --config", 3, "there is no module jobs.trian"),
    ("nano/style.yaml", "nano/stile.yaml", 3, "jobs/configs/nano/stile.yaml does not exist"),
    ("name=noir", "nmae=noir", 3, "nmae: unknown key; did you mean 'name'?"),
    ("{rank: 4}", "{rang: 4}", 3, "lora.rang: unknown key; did you mean 'rank'?"),
    ("{rank: 4}", "{rank: four}", 3, "lora.rank = 'four'"),
    ("--working-dir", "--workingdir", 3, "No such option"),
    ("job submit", "job sumbit", 3, "No such command 'sumbit'"),
    ('"noir"}', '"noir"', 3, "is no JSON"),
    ("-- \\\n", "\\\n", 3, "No such option '-m'"),
    ("port=8001", "prot=8001", 5, "prot: unknown key; did you mean 'port'?"),
    ("rank_quality", "rank_qualities", 6, "rank_qualities"),
    ("list --file", "list --flie", 6, "--file"),
    ("--fake base", "--fakes base", 7, "--fakes"),
    ("make demo", "make demos", 7, "make has no target 'demos'"),
    ("/content", "/contents", 8, "the service has no route /v1/videos/video_ID/contents"),
    ("curl ", "crul ", 8, "'crul' is not known here"),
    ("shots: [", "shot: [", 10, "shot: unknown key; did you mean 'shots'?"),
    ("num_frames: 17", "num_frames: 18", 10, "must be 4n+1"),
    ("file: mine", "file: yours", 20, "'mine.yaml' does not exist"),
    ("stage: style", "stage: stile", 20, "stage = 'stile'"),
    ("STORAGE=/data", "STORE=/data", 3, "$STORAGE is set nowhere on the page before this"),
    ("'lora={rank: 4}'", "'name=$STORAGE'", 3, "stands in single quotes"),
    ("'lora={rank: 4}'", "'lora={rank: 4}", 3, "has no end"),
    ("sh check\nSTORAGE", "sh\nSTORAGE", 1, "`sh run`, `sh check` or `sh show: reason`"),
    ("sh check\nSTORAGE", "bash check\nSTORAGE", 1, "`sh run`, `sh check` or `sh show: reason`"),
    ("sh check\nSTORAGE", "sh show:\nSTORAGE", 1, "gives its reason"),
    ("sh check\nSTORAGE", "\nSTORAGE", 1, "does not say what it is"),
    ("sh check\nSTORAGE", "text\nray status\nSTORAGE", 2, "a command in a block of text"),
    ("```sh check\npython", "\n    python -m jobs.train\n\n```sh check\npython", 20, "a fenced block with a tag"),
]


def test_a_page_without_mistakes_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(GOOD)
    assert [str(problem) for problem in problems(tmp_path / "page.md")] == []


@pytest.mark.parametrize(("right", "wrong", "line", "message"), TYPOS, ids=[typo[1] for typo in TYPOS])
def test_a_mistake_is_found_where_it_stands(tmp_path: Path, right: str, wrong: str, line: int, message: str) -> None:
    assert GOOD.count(right) >= 1
    (tmp_path / "page.md").write_text(GOOD.replace(right, wrong, 1))
    found = problems(tmp_path / "page.md")
    assert any(problem.line == line and message in problem.message for problem in found), [str(p) for p in found]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("optimizer.steps=", "optimizer.step="),
        ("nano/motion.yaml", "nano/movement.yaml"),
        ("baseline_seeds", "base_seeds"),
    ],
)
def test_a_mistake_in_a_copy_of_the_quick_start_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    copy = tmp_path / QUICK_START.name
    copy.write_text(QUICK_START.read_text().replace(right, wrong, 1))
    found = problems(copy)
    assert found
    assert all(wrong.rstrip("=") in problem.message for problem in found)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHead]:
    """A Ray head that the blocks of all pages share."""
    with LocalHead(log=tmp_path_factory.mktemp("head") / "head.log") as head:
        yield head


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout has, to run commands in."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("cinesynth", "jobs", "serve", "tune", "cluster", "docs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "images"))
    for name in ("pyproject.toml", ".rayignore", ".gitignore", "Makefile"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.own_ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_the_blocks_that_are_tagged_run_end_well(page: Path, head: LocalHead, checkout: Path) -> None:
    ran = [block for block in blocks(page) if block.tag == RUN]
    for file in (block for block in blocks(page) if block.tag == "file"):
        (checkout / file.detail).write_text(file.text)
    # One shell for the page: its variables are set once.
    script = "set -euo pipefail\n" + "\n".join(f"echo '--- line {block.line}'\n{block.text}" for block in ran)
    environment = head.environment | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S * len(ran),
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("--- line ")] == [
        f"--- line {block.line}" for block in ran
    ]
    if page == QUICK_START:
        runs = checkout / "storage" / "runs"
        lpips = json.loads((runs / "my-numbers" / "result.json").read_text())["figures"]
        assert {"lpips/base", "lpips/style", "lpips/style-motion"} <= lpips.keys()
        assert list((checkout / "storage" / "registry" / "my-look" / "versions").iterdir())
        _check_the_dashboard(head, str(checkout / "storage"))


def _check_the_dashboard(head: LocalHead, storage: str) -> None:
    """What docs/monitoring.md says is to be seen of the quick start's jobs."""

    def ask(path: str) -> Any:
        answer = httpx.get(f"{head.dashboard}{path}", headers={"Authorization": f"Bearer {head.token}"}, timeout=60)
        answer.raise_for_status()
        return answer.json()

    submitted = [job for job in ask("/api/jobs/") if job["type"] == "SUBMISSION" and job["metadata"].get("run")]
    told = {job["metadata"]["run"]: job for job in submitted}
    pages = {
        "prepare my-clips": "datasets/my-clips/index.html",
        "train my-style": "runs/my-style/report.html",
        "train my-motion": "runs/my-motion/report.html",
        "generate my-videos": "runs/my-videos/report.html",
    }
    for job_name, report in pages.items():
        job, _, run = job_name.partition(" ")
        named = {"job_name": job_name, "run": run, "storage": storage, "report": f"{storage}/{report}"}
        assert named.items() <= told[run]["metadata"].items()
        assert told[run]["submission_id"].startswith(f"{job}-{run}-")
        assert Path(storage, report).is_file()
    assert {run["name"] for run in ask("/api/train/v2/runs/v1")["train_runs"]} == {"my-style", "my-motion"}
