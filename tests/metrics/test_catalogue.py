import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cinesynth.metrics
from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.errors import ConfigError
from cinesynth.metrics import catalogue
from cinesynth.metrics.catalogue import metric_identity
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.record import MetricsRecord
from cinesynth.report.verdict import reading, verdict
from cinesynth.settings import parse_config
from tests.conftest import REPOSITORY


def test_the_catalogue_and_what_reads_it_load_without_torch():
    code = """
import sys
from cinesynth.config import EvaluateSettings
from cinesynth.metrics.catalogue import METRICS, metric_identity
import cinesynth.metrics.record
assert metric_identity(EvaluateSettings())
sys.exit("torch" in sys.modules and "torch was imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_primary_metrics_come_first_and_late_lpips_accompanies_lpips():
    assert [m.name for m in catalogue.chosen(["fvd", "kvd", "lpips"])] == ["kvd", "lpips", "fvd", "lpips_late"]
    assert [m.name for m in catalogue.chosen(["lpips_late"])] == ["lpips_late"]
    needs = {"kvd": ["real"], "fvd": ["real"], "lpips": ["pair"], "lpips_late": ["pair"]}
    assert {name: catalogue.METRICS[name].needs for name in needs} == needs


def test_an_unknown_metric_is_refused_with_the_names_that_exist():
    with pytest.raises(
        ConfigError, match=r"metrics\.0 = 'kdv': is not a metric; did you mean 'kvd'\? known are kvd, fvd"
    ):
        parse_config(EvaluateSettings, {"metrics": ["kdv"]})
    with pytest.raises(ValueError, match=r"distribution\.py: there is another metric 'kvd'"):
        catalogue.read_metrics(["distribution", "distribution"])


@pytest.mark.parametrize("name", ["lpro", "LPRO", "vid_comp", "vid-comp", "Vid-Comp"])
def test_a_name_without_a_published_definition_is_refused_and_others_are_named(name):
    sentence = rf"metrics\.1 = '{name}': no published definition was found; use tof, tlp or tssim$"
    with pytest.raises(ConfigError, match=sentence):
        parse_config(EvaluateSettings, {"metrics": ["lpips", name]})
    assert {"tof", "tlp", "tssim"} <= set(catalogue.METRICS)


@pytest.mark.parametrize("cls", [EvaluateSettings, EvaluateConfig])
def test_a_configuration_of_the_vgg_network_is_refused_and_the_metric_named(cls):
    values = {} if cls is EvaluateSettings else {"name": "ev", "real": "r", "arms": {"base": "b"}}
    with pytest.raises(ConfigError, match=r"lpips_net = 'vgg': this key is no more; .*ask for the metric lpips_vgg"):
        parse_config(cls, {**values, "lpips_net": "vgg"})
    recorded = parse_config(cls, {**values, "lpips_net": "alex"})
    assert recorded == parse_config(cls, values), "it is what lpips is now"


def test_identity_follows_what_defines_a_number_and_nothing_else(monkeypatch):
    identity = metric_identity(EvaluateSettings())
    assert set(identity) == {"metric_kvd", "metric_fvd", "metric_lpips", "metric_lpips_late"}
    assert all(len(sha) == 64 for sha in identity.values())
    assert metric_identity(EvaluateSettings(batch_size=1, workers=3)) == identity
    vgg = metric_identity(EvaluateSettings(metrics=["lpips", "lpips_vgg"]))
    assert vgg["metric_lpips"] == identity["metric_lpips"] != vgg["metric_lpips_vgg"]
    monkeypatch.setitem(catalogue.METRICS, "kvd", replace(catalogue.METRICS["kvd"], version=3))
    raised = metric_identity(EvaluateSettings())
    assert {name for name in identity if identity[name] != raised[name]} == {"metric_kvd"}
    lpips = catalogue.METRICS["lpips"]
    monkeypatch.setitem(catalogue.METRICS, "lpips", replace(lpips, network=replace(lpips.network, version=2)))
    rewritten = metric_identity(EvaluateSettings())
    assert {name for name in raised if raised[name] != rewritten[name]} == {"metric_lpips"}


def test_a_record_of_schema_1_still_opens():
    path = REPOSITORY / "tests" / "fixtures" / "metrics_schema_1.json"
    record = MetricsRecord.read(path)
    assert record.value("kvd", "base").value == json.loads(path.read_text())["values"][2]["value"]
    assert record.better(record.comparison("lpips", "adapter")) == "adapter"
    assert [record.label(name) for name in ("kvd", "fvd")] == ["KVD", "FVD (secondary)"]
    assert "the adapter's videos are closer to the real ones than the base's by LPIPS" in verdict([], record)
    assert any("KVD of version 1" in warning for warning in record.warnings)
    assert MetricsRecord.parse(record.to_json(), "again") == record


def _clip(seed: int, speed: float, noise: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.1, 0.4, 2)
    y, x = np.mgrid[:32, :48]
    waves = np.stack([np.sin(a * x + b * y + speed * t) for t in range(6)])[..., None]
    return (127 + 60 * waves + noise * rng.normal(size=(6, 32, 48, 3))).clip(0, 255).astype(np.uint8)


def test_a_newcomers_metric_is_one_file_and_one_line(tmp_path, monkeypatch):
    """Its file lies among the metrics, its name stands in the catalogue: every place that reads metrics knows it."""
    newcomer = str(Path(__file__).parent / "newcomer")
    monkeypatch.setattr(cinesynth.metrics, "__path__", [*cinesynth.metrics.__path__, newcomer])
    monkeypatch.setattr(catalogue, "METRICS", catalogue.read_metrics([*catalogue._FILES, "steadiness", "change"]))
    for name, speed, noise in (("real", 0.5, 0), ("base", 0.5, 20), ("adapter", 0.4, 2), ("still", 0, 0)):
        for i in range(8):
            write_video(tmp_path / name / f"w{i}.mkv", _clip(i, speed, noise), codec="ffv1")
    arms = {name: tmp_path / name for name in ("base", "adapter", "still")}
    values = {"name": "trial", "real": str(tmp_path / "real"), "arms": {n: str(f) for n, f in arms.items()}}
    config = parse_config(EvaluateConfig, {**values, "metrics": ["example_steadiness", "change"]})
    assert set(metric_identity(config)) == {"metric_example_steadiness", "metric_change"}

    record = compare(tmp_path / "real", arms, settings=config)

    assert record.value("example_steadiness", "still").value == pytest.approx(1)
    assert record.value("example_steadiness", "base").real == pytest.approx(
        record.value("example_steadiness", "adapter").real
    )
    smoother = record.comparison("example_steadiness", "adapter")
    assert smoother.difference > 0
    assert record.better(smoother) == "adapter"
    assert reading(record, smoother) == "adapter is better"
    nearer, further = record.comparison("change", "adapter"), record.comparison("change", "still")
    assert reading(record, nearer) == "adapter is closer to the real windows"
    distance = [abs(record.value("change", arm).value - record.value("change", arm).real) for arm in ("still", "base")]
    assert further.difference == pytest.approx(distance[0] - distance[1])
    sentence = verdict([], record)
    assert "the adapter's videos are better than the base's by example steadiness (+" in sentence
    assert "frame change" not in sentence
    assert "frame change (secondary)  adapter - base" in record.table()
    assert record.figures()["example_steadiness/adapter-base/excludes_zero"] is True
    assert MetricsRecord.parse(record.to_json(), "here") == record
