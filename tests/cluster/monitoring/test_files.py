"""Dashboards agree with the table of series; Prometheus's own tool takes alerts and configuration."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cinesynth.telemetry import SERIES, Series
from cluster.monitoring import dashboards
from tests.conftest import REPOSITORY

MONITORING = REPOSITORY / "cluster" / "monitoring"
NAMED = re.compile(r"ray_cinesynth_\w+")


def named_in(text: str) -> set[str]:
    """Series of ours that a text names, by the names of the table."""
    found = {name.removeprefix("ray_") for name in NAMED.findall(text)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def promtool(*arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_what_the_table_says() -> None:
    dashboards.main(["--check"])


def test_a_stale_a_missing_and_a_foreign_file_are_found(tmp_path: Path) -> None:
    dashboards.write(tmp_path)
    assert dashboards.stale(tmp_path) == []
    (tmp_path / "cinesynth-serve.json").unlink()
    (tmp_path / "cinesynth-old.json").write_text("{}")
    train = tmp_path / "cinesynth-train.json"
    train.write_text(train.read_text().replace("train_loss", "train_lost"))
    assert dashboards.stale(tmp_path) == ["cinesynth-old.json", "cinesynth-serve.json", "cinesynth-train.json"]


def test_every_series_is_on_its_own_dashboard_and_nothing_else_is_asked_for() -> None:
    shown = set()
    for path in sorted((MONITORING / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        exprs = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        ours = named_in(" ".join(exprs))
        assert {name.split("_")[1] for name in ours} == {path.stem.removeprefix("cinesynth-")}
        shown |= ours
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]} == {
            (12 * (i % 2), 8 * (i // 2)) for i in range(len(board["panels"]))
        }
    assert shown == set(SERIES)


def test_names_follow_prometheus() -> None:
    for series in SERIES.values():
        assert re.fullmatch(r"cinesynth_(train|prepare|tune|serve)_[a-z_]+", series.name)
        assert series.name.endswith("_total") == (series.kind == "counter")
        assert bool(series.buckets) == (series.kind == "histogram")
        assert not re.search(r"_(ms|minutes|hours|gb|mb|percent|s)$", series.name), f"{series.name}: no base unit"


def test_alerts_ask_for_series_of_the_table_and_say_what_to_do() -> None:
    text = (MONITORING / "alerts.yaml").read_text()
    assert named_in(text) <= set(SERIES)
    for rule in yaml.safe_load(text)["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_prometheus_takes_the_alerts_and_the_configuration() -> None:
    promtool("check", "rules", str(MONITORING / "alerts.yaml"))
    promtool("check", "config", str(MONITORING / "prometheus.yaml"))


def exported(series: Series) -> dict[str, str]:
    """A series' lines in Prometheus and their values, of two processes, as Ray labels them."""
    labels = ", ".join(f'{label}="x"' for label in series.labels)
    found = {}
    for worker in ("a", "b"):
        told = f'WorkerId="{worker}"' + (f", {labels}" if labels else "")
        if series.kind != "histogram":
            found[f"{series.exported}{{{told}}}"] = "1+1x90"
            continue
        for at, bucket in enumerate([*series.buckets, "+Inf"]):
            found[f'{series.exported}_bucket{{{told}, le="{bucket}"}}'] = f"{at}x90"
    return found


def test_every_query_finds_a_number_in_what_is_exported(tmp_path: Path) -> None:
    nodes = ("mem_used", "mem_total", "disk_usage", "disk_free", "cpu_utilization", "gpus_utilization")
    lines = {f'ray_node_{name}{{instance="n:1", GpuIndex="0"}}': "1x90" for name in nodes}
    for series in SERIES.values():
        lines |= exported(series)
    exprs = {
        target["expr"]
        for content in dashboards.files().values()
        for panel in json.loads(content)["panels"]
        for target in panel["targets"]
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in lines.items()],
        "promql_expr_test": [
            # NaN is no number, and not equal to itself
            {"expr": f"count(({expr}) == ({expr}))", "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}]}
            for expr in sorted(exprs)
            for at in ("0m", "30m")
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_a_counter_that_begins_late_shows_its_first_event(tmp_path: Path) -> None:
    (query,) = dashboards.queries_of(SERIES["cinesynth_serve_leases_lost_total"])
    name = "ray_cinesynth_serve_leases_lost_total"
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f'{name}{{reason="oom", WorkerId="a"}}', "values": "_x5 1x100"},
            {"series": f'{name}{{reason="timeout", WorkerId="a"}}', "values": "2x50 5x55"},
        ],
        "promql_expr_test": [
            {
                "expr": query.expr,
                "eval_time": at,
                "exp_samples": [{"labels": f'{{reason="{r}"}}', "value": v} for r, v in values.items()],
            }
            for at, values in (("20m", {"oom": 1, "timeout": 2}), ("70m", {"oom": 0, "timeout": 3}))
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_a_gap_in_what_was_scraped_shows_no_old_events_an_hour_later(tmp_path: Path) -> None:
    (query,) = dashboards.queries_of(SERIES["cinesynth_serve_leases_lost_total"])
    line = 'ray_cinesynth_serve_leases_lost_total{reason="oom", WorkerId="a"}'
    grown = [{"labels": '{reason="oom"}', "value": 1}]
    test = {
        "interval": "1m",
        "input_series": [{"series": line, "values": "7x60 _x20 8x100"}],
        "promql_expr_test": [{"expr": query.expr, "eval_time": "135m", "exp_samples": grown}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yaml")))


def test_the_folder_of_a_head_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        dashboards.main(["--ray", str(tmp_path)])
    assert end.value.code == 2
    assert f"{tmp_path}/session_latest/metrics/grafana/dashboards/default_" in capsys.readouterr().err


def test_our_dashboards_lie_beside_ray_s_and_are_rows_above_its_panels_however_often_they_are_written(
    tmp_path: Path,
) -> None:
    from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_default_grafana_dashboard

    folder = tmp_path / "session_latest" / "metrics" / "grafana" / "dashboards"
    folder.mkdir(parents=True)
    rays, _ = generate_default_grafana_dashboard()
    page = folder / "default_grafana_dashboard.json"
    page.write_text(rays)
    for _ in range(2):
        dashboards.main(["--ray", str(tmp_path)])
        assert {path.name for path in folder.iterdir()} == {page.name, *dashboards.files()}
        panels = json.loads(page.read_text())["panels"]
        rows, theirs = panels[:4], panels[4:]
        assert [row["title"].partition(": ")[2] for row in rows] == ["training", "datasets", "searches", "serving"]
        assert all(row["type"] == "row" and row["collapsed"] and row["panels"] for row in rows)
        before = json.loads(rays)["panels"]
        assert [p["id"] for p in theirs] == [p["id"] for p in before]
        assert [p["gridPos"]["y"] for p in theirs] == [p["gridPos"]["y"] + 4 for p in before]
        ids = [p["id"] for row in rows for p in [row, *row["panels"]]] + [p["id"] for p in before]
        assert len(ids) == len(set(ids))
        assert named_in(json.dumps(rows)) == set(SERIES)
