"""Pages: each one self-contained HTML file under 5 MB that needs no network, rendered from this package's templates.

Everything that a template prints is escaped, since captions come from outside; only `curves` hands over markup.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any

import jinja2

from cinesynth.outline import sized
from cinesynth.storage import Storage, public_uri

log = logging.getLogger("cinesynth.report")

MAX_BYTES = 5_000_000


def write_page(folder: Storage, name: str, template: str, **values: Any) -> str:
    """Render `template` with `values` into the object `name`; returns its uri."""
    html = render_page(template, **values)
    if len(html.encode()) > MAX_BYTES:
        log.warning("%s/%s has %.1f MB, more than a page should", folder.uri, name, len(html.encode()) / 1e6)
    folder.write_text(name, html)
    return f"{folder.uri}/{name}"


def render_page(template: str, **values: Any) -> str:
    """A template of this package as HTML. Raises jinja2.UndefinedError when it needs a value that is not given."""
    return _environment().get_template(template).render(**values)


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, trailing zeros kept, and a true minus sign; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:#.{digits}g}".removesuffix(".").replace("-", "−")


def span(interval: Any) -> str:
    """An interval (anything with `low` and `high`) as `[low, high]`; a dash for none."""
    return "–" if interval is None else f"[{number(interval.low)}, {number(interval.high)}]"


def signed(value: float | None, digits: int = 4) -> str:
    """As `number`, with a plus sign where it is positive."""
    return number(value, digits) if value is None or value <= 0 else f"+{number(value, digits)}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cinesynth.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "span": span, "signed": signed, "public_uri": public_uri}
    environment.globals["count"] = sized
    return environment
