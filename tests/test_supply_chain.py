"""What the project is made of: versions that fit together, licences that are told, and nothing that phones home."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from types import ModuleType

import pytest

from docs.licences import NOT_STATED, SCHEMAS, USES, licence_of, packages, page
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`.ci/update_constraints.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("update_constraints", REPOSITORY / ".ci" / "update_constraints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_new_resolution_is_written_and_told(script: ModuleType) -> None:
    before = "# The exact versions.\nast_serialize==0.13.1\ntorch==2.15.0\ntorchvision==0.29.2\ntzdata==2026.6\n"
    found = {"ast-serialize": "0.14", "new-one": "1.0", "torch": "2.15.1", "torchvision": "0.29.2"}
    text, told = script.updated(before, found)
    assert text == (
        "# The exact versions.\nast-serialize==0.14\nnew-one==1.0\ntorch==2.15.1\ntorchvision==0.29.2\ntzdata==2026.6\n"
    )
    assert told == [
        "added    new-one 1.0",
        "changed  ast-serialize 0.13.1 -> 0.14",
        "changed  torch 2.15.0 -> 2.15.1",
        "kept     tzdata 2026.6: not needed on this machine",
    ]


def test_torch_and_torchvision_have_to_be_of_one_build(script: ModuleType) -> None:
    for build in ("", "+cpu"):
        pair = {"torch": f"2.15.0{build}", "torchvision": f"0.29.2{build}"}
        assert script.check_pair(pair) == f"torch 2.15.0{build} and torchvision 0.29.2{build} are a pair"
    # Side by side: "operator torchvision::nms does not exist".
    with pytest.raises(script.NoPair, match=r"constraints\.txt stays"):
        script.check_pair({"torch": "2.13.0+cpu", "torchvision": "0.28.0"})


def test_the_installed_torch_and_torchvision_are_a_pair() -> None:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_the_page_of_licences_is_that_of_the_installed_packages() -> None:
    assert (REPOSITORY / "docs" / "licences.md").read_text() == page()


def test_a_licence_is_told_of_almost_every_package() -> None:
    rows = packages()
    assert len(rows) > 200
    assert [name for name, _, licence, _ in rows if licence == NOT_STATED] == ["cuda-toolkit"]
    assert licence_of(distribution("torchcodec")) == "BSD 3-Clause License"  # its file alone says so
    assert {use for *_, use in rows} == {f"[{use}]" if use else "always" for use in USES}
    assert {name: use for name, *_, use in rows}["numpy"] == "always"


def test_every_schema_of_others_in_the_repository_has_its_row() -> None:
    folder = REPOSITORY / "cluster" / "kuberay" / "schemas"
    patterns = [row[0].strip("`") for row in SCHEMAS]
    for file in folder.glob("*.json.gz"):
        assert len([pattern for pattern in patterns if file.match(pattern)]) == 1, file.name
    assert all([*folder.glob(pattern)] for pattern in patterns)
    text = (folder / "README.md").read_text()
    assert all(by in text and "Apache-2.0" in licence for _, _, by, licence in SCHEMAS)


def test_both_scripts_of_continuous_integration_install_the_same_packages() -> None:
    installs = re.compile(r"apt-get install (?:-\S+ )+([\w -]+)")
    found = [installs.findall((REPOSITORY / file).read_text()) for file in (".ci/run", ".github/workflows/ci.yaml")]
    assert [len(lists) for lists in found] == [1, 1]
    assert {*found[0][0].split()} == {*found[1][0].split()} >= {"chromium", "ffmpeg", "prometheus"}


TELEMETRY = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def test_nothing_reports_home_unless_the_user_says_so() -> None:
    code = """
import cinesynth, os
from huggingface_hub import constants
from ray._common.usage import usage_lib
print(constants.HF_HUB_DISABLE_TELEMETRY, usage_lib.usage_stats_enabled(), os.environ["DO_NOT_TRACK"])
"""
    environment = {name: value for name, value in os.environ.items() if name not in TELEMETRY}
    assert said(code, environment) == "True False 1"
    assert said(code, environment | {"RAY_USAGE_STATS_ENABLED": "1"}) == "True True 1"


def said(code: str, environment: dict[str, str]) -> str:
    """What a Python process prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()


def test_what_starts_a_head_turns_its_usage_statistics_off() -> None:
    starts = re.compile(r"\bray start\b.*--head|headGroupSpec:|symmetric-run|\"start\", \"--head\"")
    files = [
        f for f in (REPOSITORY / "cluster").rglob("*") if f.suffix in (".py", ".yaml", ".yml", ".sh", ".sbatch", "")
    ]
    heads = [f for f in files if f.is_file() and f.parent.name != "schemas" and starts.search(f.read_text())]
    assert heads
    assert [
        f.name for f in heads if not re.search("RAY_USAGE_STATS_ENABLED|--disable-usage-stats", f.read_text())
    ] == []
