"""Debian's Chromium for tests of the service's pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
EXPECTED = "Failed to load resource"
"""What the console says of a refusal, which the page shows in its own words."""
TIMEOUT_MS = 15_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opening(browser: Browser, service: str, path: str) -> Iterator[Callable[..., Page]]:
    """Opens a page in contexts of their own; at the end nothing went elsewhere, and the console has no error.

    Args:
        browser: a running one.
        service: its URL.
        path: of the page.
    """
    contexts, wrong = [], []
    expect.set_options(timeout=TIMEOUT_MS)

    def go(width: int = 1280, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()

        def asked(url: str) -> None:
            if urlsplit(url).scheme != "blob" and not url.startswith(f"{service}/"):
                wrong.append(f"asked for {url}")

        def said(kind: str, text: str) -> None:
            if kind in ("error", "warning") and not text.startswith(EXPECTED):
                wrong.append(f"{kind}: {text}")

        page.on("request", lambda request: asked(request.url))
        page.on("console", lambda message: said(message.type, message.text))
        page.on("pageerror", lambda error: wrong.append(f"uncaught: {error}"))
        page.goto(f"{service}{path}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []
