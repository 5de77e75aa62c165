import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cinesynth.config import EvaluateConfig, EvaluateSettings
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import ConfigError, DatasetError, IdentityError, MediaError, StorageError, WeightsUnavailable
from cinesynth.metrics import catalogue
from cinesynth.metrics.distributed import RayExecutor
from cinesynth.metrics.evaluate import compare, evaluate
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import Metric, Network
from cinesynth.metrics.record import MetricsRecord
from cinesynth.metrics.videos import list_videos, open_sets, parse_captions, parse_groups
from cinesynth.settings import parse_config
from jobs.evaluate import overrides_of

IDS = ["w0", "w1", "w2", "w3"]
GROUPS = {"w0": "g0", "w1": "g0", "w2": "g1", "w3": "g2"}
LPIPS = EvaluateSettings(metrics=["lpips"])


def _clip(seed, noise=0, frames=10, size=(32, 48)):
    rng = np.random.default_rng(seed)
    (a, b, c), (y, x) = rng.uniform(0.05, 0.4, 3), np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(a * x + b * y + c * t) for t in range(frames)])[..., None]
    video = 127 + 90 * waves * rng.uniform(0.5, 1, 3) + noise * rng.normal(size=(frames, *size, 3))
    return video.clip(0, 255).astype(np.uint8)


def _write(folder, noise=0, ids=IDS, **kwargs):
    for i, key in enumerate(ids):
        write_video(folder / f"{key}.mkv", _clip(i, noise, **kwargs), codec="ffv1")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    return {name: _write(root / name, noise) for name, noise in (("real", 0), ("base", 60), ("adapter", 10))}


@pytest.fixture(scope="module")
def record(folders):
    arms = {"base": folders["base"], "adapter": folders["adapter"]}
    return compare(folders["real"], arms, GROUPS)


def test_every_number_carries_what_could_change_it(record):
    for metric in ("fvd", "kvd", "lpips", "lpips_late"):
        definition = record.definitions[metric]
        assert all(len(sha) == 64 for sha in definition.weights.values())
        assert definition.decoder.startswith("PyAV")
        assert definition.device == "cpu"
        for arm in ("base", "adapter"):
            value = record.value(metric, arm)
            assert (value.n_real, value.n, value.groups) == (4, 4, 3)
            assert np.isfinite(value.value)
            assert value.interval is None
    assert {name for name, d in record.definitions.items() if d.primary} == {"kvd", "lpips"}
    assert record.definitions["kvd"].version == 2
    assert record.definitions["fvd"].ddof == 0
    assert record.definitions["fvd"].d == 400
    assert record.definitions["lpips"].frames.startswith("1 to 9")
    assert record.definitions["lpips_late"].frames == "8 to 9"


def test_three_groups_give_no_interval_and_the_warning_names_every_set(record):
    assert "no intervals: real has 3 groups and base has 3 groups and adapter has 3 groups, an interval needs 8" in (
        record.warnings
    )
    assert "an interval needs 8" in record.comparison("kvd", "adapter").reason
    assert record.comparison("kvd", "adapter").excludes_zero is None


def test_the_closer_arm_wins_by_lpips_and_the_interval_shows_it(tmp_path):
    ids = [f"w{i}" for i in range(9)]
    groups = dict(zip(ids, [ids[0], *ids[:-1]], strict=True))
    real, base, adapter = (
        _write(tmp_path / n, noise, ids) for n, noise in (("real", 0), ("base", 60), ("adapter", 10))
    )
    found = compare(real, {"base": base, "adapter": adapter}, groups, LPIPS)
    difference = found.comparison("lpips", "adapter")
    assert difference.difference < 0
    assert difference.excludes_zero is True
    assert difference.interval.degrees_of_freedom == 7
    assert found.better(difference) == "adapter"
    table = found.table()
    assert "adapter is better" in table
    assert "late LPIPS (secondary)" in table
    assert not found.warnings


def test_the_record_survives_json_and_another_schema_is_refused(record, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(record.to_json()))
    assert MetricsRecord.read(path) == record
    path.write_text(json.dumps({**record.to_json(), "schema": 4}))
    with pytest.raises(StorageError, match="schema 4"):
        MetricsRecord.read(path)
    for damaged in (b'{"schema": "\xff"}', b"[" * 200_000):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"metrics\.json is not a readable metrics record"):
            MetricsRecord.read(path)


def test_two_ray_workers_and_another_batch_size_give_the_same_numbers(folders, record, ray_head, tmp_path):
    settings = EvaluateSettings(workers=2, batch_size=2)
    _same(compare(folders["real"], {"base": folders["base"]}, GROUPS, settings, RayExecutor), record)
    values = {"name": "many", "storage": str(tmp_path), "real": str(folders["real"]), "workers": 50}
    many = parse_config(EvaluateConfig, {**values, "arms": {"base": str(folders["base"])}, "metrics": ["lpips"]})
    nodes = r"the cluster's nodes \(4 CPU\) hold 4 such workers: set workers=4"
    with pytest.raises(ConfigError, match=rf"workers = 50: each takes 1 CPU; {nodes}"):
        evaluate(many)


def _same(found, record):
    assert {v.metric for v in found.values} == {"fvd", "kvd", "lpips", "lpips_late"}
    for value in found.values:
        assert value.value == pytest.approx(record.value(value.metric, "base").value, rel=1e-4)


def test_one_clip_has_no_distance_of_sets_and_keeps_its_distance_of_pairs(tmp_path):
    real, base = (_write(tmp_path / name, noise, ["w0"]) for name, noise in (("real", 0), ("base", 60)))
    found = compare(real, {"base": base}, settings=EvaluateSettings(metrics=["fvd", "kvd", "lpips"]))
    for metric in ("fvd", "kvd"):
        value = found.value(metric, "base")
        assert (value.value, value.reason) == (None, "real has 1 group, base has 1; at least 2 are needed")
        assert value.reason in found.table()
    value = found.value("lpips", "base")
    assert value.value > 0
    assert (value.interval, value.reason) == (None, "no interval: base has 1 group, an interval needs 8")


def test_identical_folders_give_zero(tmp_path):
    folder = _write(tmp_path, ids=["w0", "w1"])
    settings = EvaluateSettings(metrics=["kvd", "fvd", "lpips"])
    record = compare(folder, {"a": folder}, None, settings)
    assert [record.value(metric, "a").value for metric in ("kvd", "lpips", "lpips_late")] == [0, 0, 0]
    assert 0 <= record.value("fvd", "a").value < 1e-6


def test_unpaired_names_leave_lpips_out_with_the_reason(folders, tmp_path):
    other = _write(tmp_path / "other", ids=["x", "y"])
    record = compare(folders["real"], {"other": other}, settings=LPIPS)
    value = record.value("lpips", "other")
    assert value.value is None
    assert "no video name" in value.reason


def test_unequal_sizes_leave_lpips_out_and_name_the_files(folders, tmp_path):
    other = _write(tmp_path / "other", size=(48, 48))
    value = compare(folders["real"], {"other": other}, settings=LPIPS).value("lpips", "other")
    assert value.value is None
    assert "w0.mkv is 48x32" in value.reason


def test_captions_reach_a_metric_that_reads_them(folders, monkeypatch):
    """A metric that counts the letters of the caption: which caption met which video shows in its value."""
    network = Network("letters", "letters", lambda _, items: np.array([[len(text)] for _, text in items]), caption=True)
    metric = Metric("letters", "letters", 1, "length of the caption", network, group_means)
    monkeypatch.setitem(catalogue.METRICS, "letters", metric)
    settings = EvaluateSettings(metrics=["letters"], batch_size=3)
    captions = parse_captions("video,group,caption\nw0.mkv,g,a\nw1,g,bb\nw2,g,ccc\nw3,g,dddd\n")
    found = compare(folders["real"], {"base": folders["base"]}, None, settings, captions=captions)
    assert found.value("letters", "base").value == 2.5
    with pytest.raises(ConfigError, match="letters reads captions, and w3 has none"):
        compare(folders["real"], {"base": folders["base"]}, None, settings, captions={**captions, "w3": ""})
    values = {
        "name": "ev",
        "real": str(folders["real"]),
        "arms": {"base": str(folders["base"])},
        "metrics": ["letters"],
    }
    with pytest.raises(ConfigError, match="set groups to a CSV"):
        parse_config(EvaluateConfig, values).check_inputs()


def test_another_length_names_both_files_and_the_way_out(folders, tmp_path):
    other = _write(tmp_path / "other", ids=["w0"], frames=14)
    with pytest.raises(DatasetError, match=r"w0\.mkv has 14 frames, .*real.w0\.mkv has 10.*frames=10"):
        compare(folders["real"], {"other": other}, settings=LPIPS)
    settings = EvaluateSettings(metrics=["lpips"], frames=10)
    assert compare(folders["real"], {"other": other}, settings=settings).value("lpips", "other").value == 0
    with pytest.raises(MediaError, match="fewer than frames=12"):
        open_sets({"real": folders["real"]}, 12)


def test_several_lengths_are_compared_pair_by_pair(folders, tmp_path):
    for name, noise in (("real", 0), ("base", 30)):
        _write(tmp_path / name, noise, ids=["long"], frames=14)
        shutil.copy(folders["real" if name == "real" else "base"] / "w1.mkv", tmp_path / name)
    record = compare(tmp_path / "real", {"base": tmp_path / "base"}, settings=LPIPS)
    assert record.value("lpips", "base").n == 2
    assert record.value("lpips_late", "base").value > 0
    assert record.definitions["lpips"].frames.startswith("1 to the last (9 to 13)")
    assert any("real holds videos of 1 48x32x10, 1 48x32x14" in w for w in record.warnings)


def test_too_short_videos_are_refused_before_any_weights_are_read(tmp_path):
    short = _write(tmp_path / "short", ids=["a"], frames=5)
    settings = EvaluateSettings(weights=str(tmp_path))
    with pytest.raises(DatasetError, match="at least 10 frames a video, these have 5"):
        compare(short, {"short": short}, settings=settings)


def test_codec_and_rate_differences_are_warned_of(folders, tmp_path):
    for i, key in enumerate(IDS):
        write_video(tmp_path / f"{key}.mp4", _clip(i), fps=8)
    record = compare(folders["real"], {"h264": tmp_path}, settings=LPIPS)
    assert any("8 fps, real 16" in w for w in record.warnings)
    assert any("h264 is h264, real ffv1" in w for w in record.warnings)


def test_groups_come_from_csv_and_must_be_complete(folders):
    parsed = parse_groups("video,group,note\nw0.mkv,a,x\nw1,b,\n", "groups.csv")
    assert parsed == {"w0": "a", "w1": "b"}
    with pytest.raises(ConfigError, match=r"no group is given for w2, w3;"):
        compare(folders["real"], {"base": folders["base"]}, parsed, LPIPS)
    with pytest.raises(ConfigError, match="columns video, group"):
        parse_groups("name,group\n", "groups.csv")
    with pytest.raises(ConfigError, match="'a' and 'b'"):
        parse_groups("video,group\nw0,a\nw0.mkv,b\n", "groups.csv")


def test_folders_without_videos_or_with_double_names_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="holds no video file"):
        list_videos("real", tmp_path)
    for name in ("a.mkv", "a.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match="one name"):
        list_videos("real", tmp_path)


def test_the_job_writes_its_record_and_does_not_repeat_itself(folders, tmp_path, capsys):
    arms = {name: str(folders[name]) for name in ("base", "adapter")}
    values = {"name": "ev", "storage": str(tmp_path), "real": str(folders["real"]), "arms": arms, "metrics": ["lpips"]}
    result = evaluate(parse_config(EvaluateConfig, values))
    assert result["figures"]["lpips/adapter-base"] < 0
    record = MetricsRecord.read(result["outputs"]["metrics"])
    assert record.value("lpips", "base").value == result["figures"]["lpips/base"]
    assert "adapter - base" in capsys.readouterr().out
    written = (tmp_path / "runs" / "ev" / "metrics.json").stat().st_mtime_ns
    assert evaluate(parse_config(EvaluateConfig, {**values, "batch_size": 1})) == result
    assert (tmp_path / "runs" / "ev" / "metrics.json").stat().st_mtime_ns == written
    changed = {**arms, "adapter": str(_write(tmp_path / "changed", 20))}
    with pytest.raises(IdentityError, match=r"inputs\.adapter"):
        evaluate(parse_config(EvaluateConfig, {**values, "arms": changed}))
    assert set(result["inputs"]) == {"real", "base", "adapter", "groups", "metric_lpips", "metric_lpips_late"}


def _brightness(_, items):
    return np.stack([frames.mean(axis=(1, 2, 3)) for (frames,) in items])


@pytest.fixture
def brightness(monkeypatch):
    network = Network("brightness", "brightness", _brightness)
    metric = Metric("brightness", "brightness", 1, "mean of all pixels", network, group_means, first_frame=1)
    monkeypatch.setitem(catalogue.METRICS, "brightness", metric)
    return metric


def test_a_metric_may_be_added_to_a_complete_run_and_none_taken_away(folders, tmp_path, brightness, monkeypatch):
    values = {"name": "ev", "storage": str(tmp_path), "real": str(folders["real"])}
    values |= {"arms": {"base": str(folders["base"])}, "metrics": ["lpips"]}
    first = evaluate(parse_config(EvaluateConfig, values))

    def again(*_):
        raise AssertionError("LPIPS is kept")

    monkeypatch.setitem(
        catalogue.METRICS,
        "lpips",
        replace(catalogue.METRICS["lpips"], network=replace(catalogue.METRICS["lpips"].network, run=again)),
    )
    more = evaluate(parse_config(EvaluateConfig, {**values, "metrics": ["lpips", "brightness"]}))
    assert more["figures"].items() > first["figures"].items()
    assert more["figures"]["brightness/base"] > 0
    assert more["status"] == "complete"
    with pytest.raises(IdentityError, match=r"metrics: the run has brightness, which is not among \['lpips'\]"):
        evaluate(parse_config(EvaluateConfig, values))


def test_every_videos_number_lies_beside_the_record_with_its_group_and_domain(
    folders, tmp_path, brightness, monkeypatch
):
    network = Network("colour", "colour", lambda _, items: np.stack([v.mean(axis=(0, 1, 2)) for (v,) in items]), d=3)
    monkeypatch.setitem(catalogue.METRICS, "colour", Metric("colour", "colour", 1, "features", network, group_means))
    groups = tmp_path / "groups.csv"
    groups.write_text("video,group,domain\nw0.mkv,g0,noir\nw1,g0,noir\nw2,g1,\nw3,g2,western\n")
    values = {"name": "ev", "storage": str(tmp_path), "real": str(folders["real"]), "groups": str(groups)}
    values |= {"arms": {name: str(folders[name]) for name in ("base", "adapter")}}
    result = evaluate(parse_config(EvaluateConfig, {**values, "metrics": ["lpips", "brightness", "colour"]}))
    table = pq.read_table(result["outputs"]["windows"])
    assert table.column_names == ["metric", "arm", "id", "group", "domain", "value"]
    assert [str(t) for t in table.schema.types] == ["string"] * 5 + ["double"]
    rows = table.to_pylist()
    counts = Counter((row["metric"], row["arm"]) for row in rows)
    both = {(name, arm): 4 for name in ("lpips", "lpips_late", "brightness") for arm in ("base", "adapter")}
    assert counts == {**both, ("brightness", "real"): 4}
    assert {row["id"]: (row["group"], row["domain"]) for row in rows} == {
        "w0": ("g0", "noir"), "w1": ("g0", "noir"), "w2": ("g1", ""), "w3": ("g2", "western"),
    }  # fmt: skip
    found = {row["id"]: row["value"] for row in rows if (row["metric"], row["arm"]) == ("brightness", "base")}
    read = read_video(folders["base"] / "w2.mkv")[0]
    assert found["w2"] == pytest.approx(read[1:].mean())
    means = [np.mean([found["w0"], found["w1"]]), found["w2"], found["w3"]]
    assert result["figures"]["brightness/base"] == pytest.approx(np.mean(means))
    lines = list(csv.DictReader((tmp_path / "runs" / "ev" / "windows.csv").open()))
    assert [{**line, "value": float(line["value"])} for line in lines] == rows


def test_a_run_whose_weights_were_absent_goes_on_when_they_are_there(folders, tmp_path, brightness, monkeypatch):
    values = {"name": "ev", "storage": str(tmp_path), "real": str(folders["real"])}
    values |= {"arms": {"base": str(folders["base"])}, "metrics": ["brightness"]}

    def absent(_):
        raise WeightsUnavailable("weights lie nowhere")

    without = replace(brightness, network=replace(brightness.network, load=absent))
    monkeypatch.setitem(catalogue.METRICS, "brightness", without)
    result = evaluate(parse_config(EvaluateConfig, values))
    assert result["figures"] == {"brightness/base": None}
    (told,) = result["left_out"].values()
    assert told.startswith("1 (the first: brightness of base: ")
    assert "weights lie nowhere" in told
    with pytest.raises(WeightsUnavailable, match="lie nowhere"):
        evaluate(parse_config(EvaluateConfig, {**values, "require": True}))
    monkeypatch.setitem(catalogue.METRICS, "brightness", brightness)
    assert evaluate(parse_config(EvaluateConfig, values))["figures"]["brightness/base"] > 0


def test_the_command_line_takes_any_two_folders_without_ray_and_says_what_it_leaves_out(folders, tmp_path):
    made = shutil.copytree(folders["base"], tmp_path / "made")
    (made / "w3.mkv").rename(made / "other.mkv")
    (made / "notes.txt").touch()
    command = [sys.executable, "-m", "jobs.evaluate", "--real", str(folders["real"]), "--fake", str(made)]
    command += ["--storage", str(tmp_path / "with space"), "--name", "two", "metrics=[lpips]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluate two: complete" in done.stdout
    assert (
        "  left out:\n"
        "    no_pair: 2 (the first: fake: other: real has no video of that name)\n"
        "    passed_over: 1 (the first: fake: notes.txt: .txt)\n"
    ) in done.stdout
    folder = tmp_path / "with space" / "runs" / "two"
    assert (folder / "result.json").is_file()
    page, value = (folder / "report.html").read_text(), MetricsRecord.read(folder / "metrics.json").values[0]
    assert "<h1" in page
    assert f"{value.value:.5f}" in page
    assert page.count("data:image/") >= 3 * 2  # filmstrips of the best, the median and the worst window, real and fake


def test_flags_become_overrides(tmp_path):
    (tmp_path / "a=b").mkdir()
    argv = ["--real", "r", "--fake", "base=x", "--fake", str(tmp_path / "a=b"), "workers=2", "--groups", "g.csv"]
    found = overrides_of([*argv, "--name", "n"])
    assert found == [
        "workers=2",
        'real="r"',
        'groups="g.csv"',
        'name="n"',
        'arms.base="x"',
        f'arms.fake2="{tmp_path}/a=b"',
    ]
    assert any(item.startswith('name="evaluate-') for item in overrides_of(argv))


def test_bad_inputs_are_named_by_their_key(tmp_path):
    values = {"name": "ev", "real": str(tmp_path), "arms": {"base": str(tmp_path / "none")}}
    with pytest.raises(ConfigError, match=r"arms\.base: .*is not a folder"):
        parse_config(EvaluateConfig, values).check_inputs()
    with pytest.raises(ConfigError, match="arms"):
        parse_config(EvaluateConfig, {**values, "arms": {"a/b": "x"}})
    with pytest.raises(ConfigError, match="frames = 0"):
        parse_config(EvaluateConfig, {**values, "frames": 0})
