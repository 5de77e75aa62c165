"""Grafana's dashboards, made of the table of series: `python -m cluster.monitoring.dashboards`.

It writes `grafana/cinesynth-{train,prepare,tune,serve}.json` beside this file. `--check` ends with exit code 1 where a
file is not what it would write. `--ray [TEMP_DIR]` writes them into the folder that the Grafana of a running Ray head
reads, and puts them as rows, closed, above Ray's own panels on the Metrics page of its dashboard.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinesynth.telemetry import SERIES, Series

FOLDER = Path(__file__).parent / "grafana"
_TITLES = {
    "train": "cinesynth: training",
    "prepare": "cinesynth: datasets",
    "tune": "cinesynth: searches",
    "serve": "cinesynth: serving",
}
"""Dashboard (the second word of its series' names) to title."""
_UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "timestamp": "s", "": "short"}
"""Unit of the table to Grafana's."""
_WIDTH, _HEIGHT = 12, 8
"""Of a panel, in cells of Grafana's grid, which is 24 wide."""
METRICS_PAGE = "default_grafana_dashboard.json"
"""The file of the dashboard that Ray's Metrics page shows."""
_OUR_IDS = 100_000
"""Ids of our panels in Ray's dashboard begin here; Ray's are below, and its pages name some of them."""


@dataclass(frozen=True)
class Query:
    """One PromQL expression of a panel, and Grafana's template for the names of its lines."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph over time."""

    title: str
    told: str
    unit: str
    queries: tuple[Query, ...]


OF_NODES = (
    Panel(
        "GPU utilisation",
        "of each GPU",
        "percent",
        (Query("max by (instance, GpuIndex) (ray_node_gpus_utilization)", "{{instance}} {{GpuIndex}}"),),
    ),
    Panel(
        "Memory of nodes",
        "share that is used",
        "percentunit",
        (Query("max by (instance) (ray_node_mem_used) / max by (instance) (ray_node_mem_total)", "{{instance}}"),),
    ),
    Panel(
        "Disk of nodes",
        "share that is used, where Ray keeps its files",
        "percentunit",
        (
            Query(
                "max by (instance) (ray_node_disk_usage) / (max by (instance) (ray_node_disk_usage) + "
                "max by (instance) (ray_node_disk_free))",
                "{{instance}}",
            ),
        ),
    ),
    Panel(
        "CPUs of nodes",
        "utilisation",
        "percent",
        (Query("max by (instance) (ray_node_cpu_utilization)", "{{instance}}"),),
    ),
)
"""What every dashboard ends with: Ray's own series."""


def queries_of(series: Series) -> tuple[Query, ...]:
    """How a series is shown: a gauge as it is, a counter by how much it grew in an hour, a histogram by the
    median and the 95th percentile of an hour."""
    by = f" by ({', '.join(series.labels)})" if series.labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in series.labels) or series.told
    name = series.exported
    if series.kind == "histogram":
        buckets = _in_an_hour(f"{name}_bucket", " by (le)")
        return tuple(Query(f"histogram_quantile({q}, {buckets})", f"{q:.0%}") for q in (0.5, 0.95))
    if series.kind == "counter":
        return (Query(_in_an_hour(name, by), legend),)
    if series.unit == "timestamp":
        return (Query(f"time() - max{by} ({name})", legend),)
    return (Query(f"max{by} ({name})", legend),)


def _in_an_hour(name: str, by: str) -> str:
    """By how much a counter grew. `increase()` leaves out the first event of a line, which begins at 1 and not at 0;
    where videos take minutes, that is most of them. What a line was at is what was known last of the day before the
    hour, as nothing may have been scraped just an hour ago."""
    before = f"last_over_time({name}[1d] offset 1h)"
    return f"clamp_min(sum{by} ({name} - ({before} or {name} * 0)), 0)"


def panels_of(dashboard: str) -> list[Panel]:
    """The panels of a dashboard in the order of the table; series of one title share a panel."""
    titled: dict[str, list[Series]] = {}
    for series in SERIES.values():
        if series.name.startswith(f"cinesynth_{dashboard}_"):
            titled.setdefault(series.panel, []).append(series)
    return [*(_panel(title, found) for title, found in titled.items()), *OF_NODES]


def _panel(title: str, found: list[Series]) -> Panel:
    told = "; ".join(f"{s.name.partition('_')[2]}: {s.told}" for s in found)
    if any(s.kind != "gauge" for s in found):
        title += " in an hour"
    queries = [(s, query) for s in found for query in queries_of(s)]
    if len(found) > 1:  # what tells lines of one panel apart
        queries = [(s, Query(q.expr, f"{s.name.split('_', 2)[2]} {q.legend}")) for s, q in queries]
    return Panel(title, told, _UNITS[found[0].unit], tuple(query for _, query in queries))


def dashboard(name: str) -> dict[str, Any]:
    """Grafana's JSON of a dashboard."""
    return {
        "uid": f"cinesynth-{name}",
        "title": _TITLES[name],
        "tags": ["cinesynth", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Prometheus", "value": "Prometheus"},
                }
            ]
        },
        "panels": [_graph(place, panel) for place, panel in enumerate(panels_of(name))],
    }


def _graph(place: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(place, 2)
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.told,
        "datasource": source,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"lineWidth": 1, "fillOpacity": 5, "showPoints": "auto"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": source, "expr": query.expr, "legendFormat": query.legend}
            for i, query in enumerate(panel.queries)
        ],
    }


def files() -> dict[str, str]:
    """File name to content, of all dashboards."""
    return {f"cinesynth-{name}.json": json.dumps(dashboard(name), indent=1) + "\n" for name in _TITLES}


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of the files of a folder that are not what they would be written as, too many or missing."""
    wanted, there = files(), {path.name: path.read_text() for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def write(folder: Path) -> list[Path]:
    """Write all dashboards into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in files().items():
        (folder / name).write_text(content)
        written.append(folder / name)
    return written


def with_our_rows(board: dict[str, Any]) -> dict[str, Any]:
    """Ray's dashboard of the Metrics page with a closed row for each of ours on top; it may have them already."""
    theirs = [panel for panel in board["panels"] if panel["id"] < _OUR_IDS]
    top = min((panel["gridPos"]["y"] for panel in theirs), default=0)
    rows = [_row(place, name) for place, name in enumerate(_TITLES)]
    moved = [panel | {"gridPos": panel["gridPos"] | {"y": panel["gridPos"]["y"] - top + len(rows)}} for panel in theirs]
    return board | {"panels": [*rows, *moved]}


def _row(place: int, name: str) -> dict[str, Any]:
    first = _OUR_IDS + 1000 * place
    panels = [_graph(i, panel) for i, panel in enumerate(panels_of(name)) if panel not in OF_NODES]
    for panel in panels:
        panel["id"] += first
        panel["gridPos"]["y"] += place + 1
    at = {"x": 0, "y": place, "w": 2 * _WIDTH, "h": 1}
    return {"id": first, "type": "row", "title": _TITLES[name], "collapsed": True, "gridPos": at, "panels": panels}


def show_on_metrics_page(folder: Path) -> Path:
    """Put our rows into Ray's dashboard in a folder; returns its path."""
    path = folder / METRICS_PAGE
    board = with_our_rows(json.loads(path.read_text()))
    written = folder / f".{METRICS_PAGE}.tmp"  # Grafana may be reading
    written.write_text(json.dumps(board))
    written.replace(path)
    return path


def ray_folder(temp_dir: Path) -> Path:
    """The folder that the Grafana of a Ray head reads dashboards from.

    Raises FileNotFoundError where no head runs with this temporary folder, or has not written its own ones yet.
    """
    folder = temp_dir / "session_latest" / "metrics" / "grafana" / "dashboards"
    if not (folder / METRICS_PAGE).is_file():
        raise FileNotFoundError(
            f"{folder / METRICS_PAGE} is not there: give the temporary folder of a head (its --temp-dir; /tmp/ray by "
            "default), on the head's own machine, while it runs"
        )
    return folder


def main(argv: Iterable[str] | None = None) -> None:
    """Write the dashboards, or check them."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.monitoring.dashboards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a file is stale")
    parser.add_argument("--ray", nargs="?", const="/tmp/ray", metavar="TEMP_DIR", help="of a running head")
    arguments = parser.parse_args(None if argv is None else list(argv))
    if arguments.check:
        if found := stale():
            sys.exit(f"not what the table of series says: {', '.join(found)}; python -m cluster.monitoring.dashboards")
        return
    try:
        folder = ray_folder(Path(arguments.ray)) if arguments.ray else FOLDER
    except FileNotFoundError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    for path in write(folder):
        print(path)
    if arguments.ray:
        print(show_on_metrics_page(folder))


if __name__ == "__main__":
    main()
