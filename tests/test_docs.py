"""Links and file names in the documentation lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("cluster/**/*.md")]
FOLDERS = ("benchmarks", "cinesynth", "cluster", "docs", "jobs", "serve", "tests")


def missing(page: Path) -> list[str]:
    """Targets of relative links, and files named from the repository's root, that do not exist."""
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
    gone = [link for link in links if link and not (page.parent / link).exists()]
    return gone + [name for name in named if not (REPOSITORY / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_exists(page: Path) -> None:
    assert missing(page) == []
