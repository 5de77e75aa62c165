"""Each message that docs/troubleshooting.md quotes is one that the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
FOLDERS = ("cinesynth", "jobs", "serve", "tune", "cluster")
GAP = "\0"
"""Stands for what an f-string fills in."""


def quoted(page: str) -> list[str]:
    """The messages in the first column of the page's tables."""
    return [row[1] for row in re.finditer(r"^\| `(.+?)` \|", page, re.MULTILINE)]


@lru_cache
def literals() -> tuple[str, ...]:
    """Every text of the code, with gaps where values are put in."""
    files = [file for folder in FOLDERS for file in sorted((REPOSITORY / folder).rglob("*.py"))]
    return tuple(text for file in files for text in texts(file))


def texts(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(message: str, said: tuple[str, ...]) -> bool:
    """Whether a text of the code has the message's parts in their order, with a gap at each `...` between two."""
    parts = [re.escape(part.strip()) for part in message.split("...")]
    inner = re.compile(rf".*{GAP}.*".join(parts).replace(rf"{GAP}.*{GAP}", GAP), re.DOTALL)
    return any(inner.search(text) for text in said)


@pytest.mark.parametrize("message", quoted(PAGE.read_text()))
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    assert is_said(message, literals())


def test_a_message_that_nobody_says_is_found() -> None:
    assert len(quoted(PAGE.read_text())) > 40
    assert is_said("run ... exists with another identity", literals())
    assert not is_said("run ... exists with another identy", literals())
    assert not is_said("exists ... run with another identity", literals())
    assert not is_said("use another ... name", literals())  # there is no value between these words
