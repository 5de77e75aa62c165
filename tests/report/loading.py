"""What a browser would fetch from elsewhere to show a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}
"""Attributes whose address is loaded or sent to; `href` is, but of an anchor, which waits for a click."""
_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:\w+:)?//[^\s\"')]*)", re.IGNORECASE)
_SCRIPT = re.compile(r"\b(?:fetch|import|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts)\b")
_ELSEWHERE = re.compile(r"\s*(?:(?!data:)\w[\w+.-]*:|//)", re.IGNORECASE)


def fetched(html: str) -> list[str]:
    """Addresses on other hosts that the page's tags and styles load, and calls of its scripts that could."""
    page = _Loading()
    page.feed(html)
    return page.found + _STYLE.findall(html)


class _Loading(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for name, value in attrs:
            if (name in _LOADING or (name == "href" and tag != "a")) and _ELSEWHERE.match(value or ""):
                self.found.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            self.found += _SCRIPT.findall(data)
