"""The benchmarks for a GPU at nano's shape, where all of our own requirements are missing but those of a model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

THERE = ["torch", "transformers", "peft", "accelerate", "diffusers"]
"""Distributions that a machine with a GPU has, with what they require."""


def _name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _with_required(distributions: list[str]) -> set[str]:
    """The distributions and all that they require, without extras."""
    found: set[str] = set()
    left = list(distributions)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            try:
                required = [Requirement(line) for line in metadata.requires(name) or []]
            except metadata.PackageNotFoundError:  # of another platform
                continue
            left += [_name(r.name) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def missing_modules() -> list[str]:
    """Top-level modules of our requirements that do not come with a model's libraries; and two that read configuration,
    though some versions of those libraries bring pydantic."""
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    missing = {_name(Requirement(line).name) for line in ours} - _with_required(THERE)
    made_by = metadata.packages_distributions()
    return sorted({m for m, makers in made_by.items() if missing & {*map(_name, makers)}} | {"omegaconf", "pydantic"})


MISSING = missing_modules()
RUN = """
import importlib.util, runpy, sys

found = importlib.util.find_spec  # by which libraries ask for what they can do without
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in MISSING else found(name, package)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv[0] = NAME
runpy.run_module(f"benchmarks.{NAME}", run_name="__main__")
"""
SMALL = ["--shape", "nano", "--frames", "5", "--steps", "1", "--warmup", "1"]


def run(name: str, missing: list[str], *options: str) -> dict[str, Any]:
    """The figures of a benchmark that runs without these packages."""
    code = f"MISSING, NAME = {missing!r}, {name!r}\n{RUN}"
    done = subprocess.run(
        [sys.executable, "-c", code, "--device", "cpu", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1])["figures"])


def test_training_runs_without_our_other_requirements() -> None:
    chosen = ["--variants", "diffusers", "denoising, as loaded", "ours, attention kept", "ours, flash"]
    figures = run("gpu_train", MISSING, *SMALL, "--size", "64x64", "--frames", "5", "9", *chosen)
    assert figures["size"] == "64x64x5"
    assert list(figures["other_lengths"]) == ["64x64x9"]
    for found in (figures, figures["other_lengths"]["64x64x9"]):
        rows = {**found["training"], **found["denoising"]}
        assert set(rows) == {"diffusers' loop", "ours, attention kept", "ours, flash", "denoising, as loaded"}
        assert all(row["s_per_step"] > 0 for row in rows.values())
        assert found["best"] in ("ours, attention kept", "ours, flash")
    longer = figures["other_lengths"]["64x64x9"]
    assert longer["training_pflop"] > figures["training_pflop"] > 0


def test_generation_runs_without_our_other_requirements() -> None:
    chosen = ["diffusers' pipeline", "ours", "decode"]
    figures = run("gpu_generate", [*MISSING, "peft", "accelerate"], *SMALL, "--sizes", "64x64", "--variants", *chosen)
    rows = figures["64x64"]
    assert set(rows) == set(chosen)
    for name in chosen:
        assert rows[name]["s_per_step"] > 0, rows[name]


def test_what_is_checked_on_a_gpu_holds_on_a_cpu() -> None:
    checks = run("gpu_check", MISSING, "--checks", "padding", "continued", "FSDP2")["checks"]
    assert len(checks) == 4
    for name, row in checks.items():
        assert row["holds"], (name, row)


def test_what_is_missing_is_all_but_what_a_model_brings() -> None:
    assert {"ray", "pyarrow", "deepspeed", "scipy", "tensorboardX", "sqlalchemy", "fastapi", "matplotlib"} < {*MISSING}
    assert {"av", "cv2", "decord", "httpx", "lpips", "open_clip", "optuna", "scenedetect"} < {*MISSING}
    assert not {"torch", "transformers", "peft", "accelerate", "diffusers", "safetensors", "numpy"} & {*MISSING}
