"""No page loads anything from a network, whichever template it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from cinesynth import report
from tests.report.loading import fetched

TEMPLATES = sorted((Path(report.__file__).parent / "templates").glob("*.j2"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_loads_nothing_from_elsewhere(template: Path) -> None:
    assert fetched(template.read_text()) == []


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="HTTP://example/a.png">',
        '<svg><image xlink:href="https://example/a.png"/></svg>',
        "<style>@font-face { src: url( 'https://example/a.woff2') }</style>",
        '<style>@import "//example/a.css";</style>',
        '<p style="background: url(https://example/a.png)">x</p>',
        "<script>fetch(address)</script>",
    ],
)
def test_what_would_be_fetched_is_seen(html: str) -> None:
    assert len(fetched(html)) == 1


def test_what_lies_in_or_beside_a_page_is_not_fetched() -> None:
    html = """<link rel="icon" href="data:,"><img src="data:image/png;base64,AA"><video src="videos/a.mp4" poster="#b">
    <a href="https://example/paper">paper</a><svg xmlns="http://www.w3.org/2000/svg"><use href="#a"/></svg></video>
    <i style="fill: url(#clip)"></i><script>document.querySelectorAll("video")</script>"""
    assert fetched(html) == []
