"""Resolve the dependencies anew and write constraints.txt: `make update`, or `python .ci/update_constraints.py`.

pip resolves what pyproject.toml asks for, without the versions that are pinned, and installs nothing. What changed is
printed. torch and torchvision have to be a pair of one build: torchvision's own metadata says which torch it takes, and
beside another one nothing that uses it can be imported.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
CONSTRAINTS = REPOSITORY / "constraints.txt"
OURS = "cinesynth"


class NoPair(ValueError):
    """A torchvision that takes another torch than the one beside it."""


def resolve() -> dict[str, Any]:
    """What pip would install for `.[dev]` into an empty environment: its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), f"{REPOSITORY}[dev]"]
        subprocess.run(command, check=True)
        return dict(json.loads(report.read_text()))


def versions(report: Mapping[str, Any]) -> dict[str, str]:
    """Package to version in pip's report, without this project."""
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    return {name: version for name, version in found.items() if canonicalize_name(name) != OURS}


def check_pair(report: Mapping[str, Any]) -> str:
    """The sentence that torch and torchvision fit together; raises NoPair where they do not."""
    found = {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in report["install"]}
    torch, vision = found["torch"], found["torchvision"]
    asked = [Requirement(text) for text in vision.get("requires_dist", [])]
    wanted = next((r.specifier for r in asked if canonicalize_name(r.name) == "torch"), None)
    if not wanted:
        raise NoPair(f"torchvision {vision['version']} does not say which torch it takes; constraints.txt stays")
    if not wanted.contains(torch["version"]) or _build(torch) != _build(vision):
        raise NoPair(
            f"torchvision {vision['version']} takes torch{wanted} of its own build, and beside it is torch "
            f"{torch['version']}: constraints.txt stays. Ask for both from one index, in versions of one release"
        )
    return f"torch {torch['version']} and torchvision {vision['version']} are a pair"


def _build(metadata: Mapping[str, Any]) -> str:
    """The build, such as `cpu` of `2.15.0+cpu`; empty for that of the package index."""
    return str(metadata["version"]).partition("+")[2]


def updated(text: str, new: Mapping[str, str]) -> tuple[str, list[str]]:
    """The text of constraints.txt with other versions, and what changed, a line each.

    A package that was not resolved stays as it is: another platform, or another Python, asks for it.
    """
    comments = [line for line in text.splitlines() if line.startswith("#")]
    old = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    names = {canonicalize_name(name): name for name in old}
    told, merged = [], dict(old)
    for name, version in new.items():
        before = names.get(canonicalize_name(name))
        if before is None:
            told.append(f"added    {name} {version}")
        elif old[before] != version:
            told.append(f"changed  {name} {old[before]} -> {version}")
        merged.pop(before or name, None)
        merged[name] = version
    here = {canonicalize_name(name) for name in new}
    told += [
        f"kept     {name} {old[name]}: not needed on this machine" for key, name in names.items() if key not in here
    ]
    lines = [f"{name}=={merged[name]}" for name in sorted(merged, key=str.lower)]
    return "\n".join([*comments, *lines]) + "\n", sorted(told)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Exit code 1: nothing was written, and the last line says why."""
    parser = argparse.ArgumentParser(prog="python .ci/update_constraints.py", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print what would change, and write nothing")
    given = parser.parse_args(argv)
    try:
        report = resolve()
        pair = check_pair(report)
    except (NoPair, subprocess.CalledProcessError) as e:
        sys.exit(f"error: {e}")
    text, told = updated(CONSTRAINTS.read_text(), versions(report))
    print("\n".join([*told, pair]))
    if given.dry_run:
        return
    CONSTRAINTS.write_text(text)
    print("wrote constraints.txt; now: make install, make test test-slow, python -m docs.licences")


if __name__ == "__main__":
    main()
