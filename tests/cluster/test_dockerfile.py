"""The image's recipe, read: it is not built where these tests run."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """(instruction, the rest of it), with continued lines joined and comments left out."""
    text = (REPOSITORY / "cluster" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def arguments_of(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in steps if name == instruction]


def sources(steps: list[tuple[str, str]]) -> list[str]:
    """What is copied, in order."""
    return [word for rest in arguments_of(steps, "COPY") for word in rest.split()[:-1] if not word.startswith("--")]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path of the root out: the last line that fits decides."""
    left_out = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(path, pattern.removeprefix("!")):
            left_out = not pattern.startswith("!")
    return left_out


def test_every_instruction_is_one(steps: list[tuple[str, str]]) -> None:
    assert {name for name, _ in steps} <= {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
    assert steps[0][0] == "FROM"


def test_what_is_copied_is_there_and_not_left_out(steps: list[tuple[str, str]]) -> None:
    copied = sources(steps)
    assert copied
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert not ignored(source), source
    for secret in (".git", "storage", ".venv", "tests", "demo-output", ".env"):
        assert ignored(secret), secret


def test_all_packages_of_the_wheel_are_copied(steps: list[tuple[str, str]]) -> None:
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(sources(steps))
    assert PROJECT["project"]["readme"] in sources(steps)
    assert set(PROJECT["project"]["license-files"]) <= set(sources(steps))


def test_its_python_is_one_that_the_package_takes(steps: list[tuple[str, str]]) -> None:
    (image,) = arguments_of(steps, "FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", image)
    assert version is not None
    assert f"Programming Language :: Python :: {version.group(1)}" in PROJECT["project"]["classifiers"]
    lowest = re.match(r">=(\d+\.\d+)", PROJECT["project"]["requires-python"])
    assert lowest is not None
    assert version.group(1) == lowest.group(1)


def test_versions_are_those_of_the_constraints(steps: list[tuple[str, str]]) -> None:
    installs = [rest for rest in arguments_of(steps, "RUN") if "pip install" in rest]
    for install in installs:
        assert "--constraint constraints.txt" in install or "--no-deps" in install
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", " ".join(installs))
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_dependencies_come_before_code(steps: list[tuple[str, str]]) -> None:
    """A change of code leaves the layer of dependencies as it is."""
    dependencies = next(i for i, (_, rest) in enumerate(steps) if "--constraint constraints.txt" in rest)
    before = sources(steps[:dependencies])
    assert {"pyproject.toml", "constraints.txt"} <= set(before)
    assert not [name for name in before if PurePosixPath(REPOSITORY / name).is_relative_to(REPOSITORY / "cinesynth")]
    assert "cinesynth" in sources(steps[dependencies:])


def test_a_login_shell_has_the_same_path(steps: list[tuple[str, str]], tmp_path: Path) -> None:
    """KubeRay may start `ray` in one: /etc/profile sets PATH anew and then reads /etc/profile.d/*.sh."""
    (told,) = re.findall(r"echo '([^']+)' > /etc/profile\.d/\w+\.sh", " ".join(arguments_of(steps, "RUN")))
    script = tmp_path / "venv.sh"
    script.write_text(told)
    shell = subprocess.run(
        ["bash", "-c", f"PATH=/usr/bin; . {script}; echo $PATH"], check=True, capture_output=True, text=True
    )
    first = shell.stdout.split(":")[0]
    assert any(f"PATH={first}:$PATH" in rest for rest in arguments_of(steps, "ENV"))
    assert any(f"python -m venv {first.removesuffix('/bin')} " in rest for rest in arguments_of(steps, "RUN"))


def test_nodes_run_without_root_and_with_a_token(steps: list[tuple[str, str]]) -> None:
    assert arguments_of(steps, "USER")[-1] not in ("root", "0")
    assert any("RAY_AUTH_MODE=token" in rest for rest in arguments_of(steps, "ENV"))
    assert not any("AUTH_TOKEN=" in rest for _, rest in steps)
    (command,) = arguments_of(steps, "CMD")
    started = json.loads(command)
    assert started[:2] == ["ray", "start"]
    assert "--dashboard-host=127.0.0.1" in started
