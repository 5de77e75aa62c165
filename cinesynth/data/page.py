"""The page of a clips dataset: counts and a contact sheet, in one HTML file under 5 MB that needs no network."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import jinja2
import pyarrow.parquet as pq

from cinesynth.data.windows import Reject, Window
from cinesynth.storage import Storage

_SHEET_WINDOWS = 120
_SHEET_BYTES = 3_500_000
_REJECT_ROWS = 50

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ m.name }}: clips dataset</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 :root { color-scheme: light dark; --line: #8884; --soft: #888; }
 body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
 h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
 .soft { color: var(--soft); font-size: .9em }
 .tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 2.5rem }
 table { border-collapse: collapse } th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top }
 th { font-weight: 600 } td, th { border-bottom: 1px solid var(--line) } td.n, th.n { text-align: right }
 .sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 1rem }
 figure { margin: 0 } img { width: 100%; border-radius: 4px; display: block } figcaption { font-size: .82em }
</style></head><body>
<h1>{{ m.name }}</h1>
<p class="soft">{{ m.windows }} windows of {{ m.window.num_frames }} frames at {{ m.window.fps }} fps,
{{ m.window.width }}&times;{{ m.window.height }}; {{ hours }}; {{ size }} in {{ m.shards|length }} shards;
encoded by {{ m.model }} ({{ m.encoder_hash[:12] }}); content {{ m.content_sha256[:12] }}</p>
<div class="tables">
{% for title, counts in [("split", m.splits), ("domain", m.domains)] %}
<table><tr><th>{{ title }}</th><th class="n">windows</th><th class="n">groups</th></tr>
{% for name, c in counts.items() %}
<tr><td>{{ name }}</td><td class="n">{{ c.windows }}</td><td class="n">{{ c.groups }}</td></tr>
{% endfor %}</table>
{% endfor %}
<table><tr><th>rejected because</th><th class="n">rows</th></tr>
{% for reason, n in m.rejected.items() %}<tr><td>{{ reason }}</td><td class="n">{{ n }}</td></tr>
{% else %}<tr><td>nothing was rejected</td><td class="n">0</td></tr>{% endfor %}</table>
</div>
<h2>Contact sheet</h2>
<p class="soft">{{ sheet|length }} of {{ m.windows }} windows: first, middle and last frame.</p>
<div class="sheet">
{% for w, image in sheet %}
<figure><img loading="lazy" alt="{{ w.caption }}" src="data:image/jpeg;base64,{{ image }}">
<figcaption>{{ w.caption }}<br><span class="soft">{{ w.split }} &middot; {{ w.domain }} &middot;
{{ w.source_uri.rsplit("/", 1)[-1] }} {{ "%.2f"|format(w.start_s) }}&ndash;{{ "%.2f"|format(w.end_s) }} s</span>
</figcaption></figure>
{% endfor %}</div>
{% if rejects %}<h2>Rejected</h2>
<table><tr><th>source</th><th>reason</th><th>detail</th></tr>
{% for r in rejects[:limit] %}
<tr><td>{{ r.source.rsplit("/", 1)[-1] }}</td><td>{{ r.reason }}</td><td>{{ r.detail }}</td></tr>{% endfor %}</table>
{% if rejects|length > limit %}<p class="soft">{{ rejects|length - limit }} more in rejected.parquet.</p>{% endif %}
{% endif %}
</body></html>
"""


def write_page(dataset: Storage, manifest: dict[str, Any], windows: list[Window], rejects: list[Reject]) -> None:
    """Write `index.html` beside the shards."""
    seconds = sum(w.num_frames / w.fps for w in windows)
    megabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        _PAGE
    )
    html = template.render(
        m=manifest,
        hours=f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
        size=f"{megabytes / 1000:.2f} GB" if megabytes >= 1000 else f"{megabytes:.1f} MB",
        sheet=_contact_sheet(dataset, manifest, windows),
        rejects=rejects,
        limit=_REJECT_ROWS,
    )
    dataset.write_text("index.html", html)


def _contact_sheet(dataset: Storage, manifest: dict[str, Any], windows: list[Window]) -> list[tuple[Window, str]]:
    """Windows spread over groups, each with its preview in base64, ordered by split and source."""
    chosen = {w.window_id: w for w in _spread(windows)[:_SHEET_WINDOWS]}
    images: dict[str, str] = {}
    size = 0
    for shard in manifest["shards"]:
        with dataset.filesystem.open_input_file(f"{dataset.path}/{shard['file']}") as f:
            table = pq.read_table(f, columns=["window_id", "preview"])
        for row in table.to_pylist():
            image = base64.b64encode(row["preview"]).decode()
            if row["window_id"] in chosen and size + len(image) < _SHEET_BYTES:
                images[row["window_id"]] = image
                size += len(image)
    shown = [w for w in chosen.values() if w.window_id in images]
    shown.sort(key=lambda w: (w.split, w.domain, w.source_uri, w.start_s))
    return [(w, images[w.window_id]) for w in shown]


def _spread(windows: list[Window]) -> list[Window]:
    """First one window of every group, then a second one of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for window in sorted(windows, key=lambda w: (w.group, w.start_s)):
        ranked.append((seen[window.group], window.group, window))
        seen[window.group] += 1
    return [window for _, _, window in sorted(ranked, key=lambda r: r[:2])]
