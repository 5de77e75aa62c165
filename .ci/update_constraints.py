"""Resolve the dependencies anew and write constraints.txt: `make update`, or `python .ci/update_constraints.py`.

uv resolves what pyproject.toml asks for, without the versions that are pinned, and installs nothing. (pip downloads
whole packages to read what they need, and tries them for more than half an hour.) What changed is printed. torch and
torchvision have to be of one build: beside another one, nothing that uses torchvision can be imported.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
CONSTRAINTS = REPOSITORY / "constraints.txt"
_LINE = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


class NoPair(ValueError):
    """A torchvision of another build than the torch beside it."""


def resolve() -> dict[str, str]:
    """Package to version of what `.[dev,postgres]` takes in an empty environment of this Python."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python", sys.executable, "--extra", "dev", "--extra", "postgres", str(REPOSITORY / "pyproject.toml")]
    return dict(_LINE.findall(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def check_pair(versions: Mapping[str, str]) -> str:
    """The sentence that torch and torchvision fit together; raises NoPair where they do not.

    Their versions fit, as torchvision's requirements were resolved; what these do not say is the build, such as `cpu`
    of `2.15.0+cpu`.
    """
    torch, vision = versions["torch"], versions["torchvision"]
    if torch.partition("+")[2] != vision.partition("+")[2]:
        raise NoPair(
            f"torch {torch} and torchvision {vision} are of two builds: constraints.txt stays. "
            "Ask for both from one index"
        )
    return f"torch {torch} and torchvision {vision} are a pair"


def updated(text: str, new: Mapping[str, str]) -> tuple[str, list[str]]:
    """The text of constraints.txt with other versions, and what changed, a line each.

    A package that was not resolved stays as it is: another platform, or another Python, asks for it.
    """
    comments = [line for line in text.splitlines() if line.startswith("#")]
    old = dict(_LINE.findall(text))
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
        versions = resolve()
        pair = check_pair(versions)
    except (NoPair, subprocess.CalledProcessError) as e:
        sys.exit(f"error: {e}")
    text, told = updated(CONSTRAINTS.read_text(), versions)
    print("\n".join([*told, pair]))
    if given.dry_run:
        return
    CONSTRAINTS.write_text(text)
    print("wrote constraints.txt; now: make install, make test test-slow, python -m docs.licences")


if __name__ == "__main__":
    main()
