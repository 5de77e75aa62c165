"""FVD and KVD of drawn features: floors, intervals and the reasons for none."""

import numpy as np
import pytest
import torch

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.errors import DatasetError
from cinesynth.metrics import catalogue, distribution
from cinesynth.metrics.evaluate import compare, computable
from cinesynth.metrics.frechet import frechet_distance
from cinesynth.metrics.metric import Sample
from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.networks import i3d
from cinesynth.metrics.paired import NOTHING_SHARED
from cinesynth.metrics.statistics import halves

KVD, FVD, FID = (catalogue.METRICS[name] for name in ("kvd", "fvd", "fid"))


def _sample(name, seed, ids, groups=None, shift=0.0):
    rows = np.random.default_rng(seed).normal(shift, 1, size=(len(ids), 6))
    return Sample(name, dict(zip(ids, rows, strict=True)), groups or {key: key for key in ids})


IDS = [f"v{i:02}" for i in range(24)]
GROUPS = {key: f"g{i // 2}" for i, key in enumerate(IDS)}


def _measure(metric, real, *arms):
    return metric.measure(metric, real, arms)


def test_a_farther_arm_is_seen_and_an_equal_one_is_not():
    real = _sample("real", 0, IDS, GROUPS)
    near, far = _sample("near", 1, IDS, GROUPS), _sample("far", 2, IDS, GROUPS, shift=2)
    found = _measure(KVD, real, near, far)
    assert found.values[0].interval.low < 0 < found.values[0].interval.high
    assert found.values[1].interval.low > 0
    assert found.comparisons[0].excludes_zero is True
    assert found.comparisons[0].interval.degrees_of_freedom == 11


def test_an_arm_that_lacks_a_video_keeps_its_interval():
    """Its group is then in the real set alone: a stratum of one."""
    real, whole = _sample("real", 0, IDS), _sample("base", 1, IDS)
    lacking = _sample("adapter", 2, IDS[1:], shift=2)
    found = _measure(KVD, real, whole, lacking)
    assert found.values[1].interval is not None
    assert found.comparisons[0].interval.degrees_of_freedom < 23
    assert found.comparisons[0].excludes_zero is True


def test_differences_take_the_videos_that_all_arms_have():
    real, base = _sample("real", 0, IDS), _sample("base", 1, IDS)
    arm, third = _sample("arm", 2, IDS[:-2], shift=1), _sample("third", 3, IDS[1:], shift=1)
    kept = IDS[1:-2]
    for metric in (KVD, FVD):
        found = _measure(metric, real, base, arm, third)
        alone = [_measure(metric, real, sample.only(kept)).values[0].value for sample in (base, arm, third)]
        assert [c.difference for c in found.comparisons] == pytest.approx([alone[1] - alone[0], alone[2] - alone[0]])
        assert [(c.n, c.left_out) for c in found.comparisons] == [
            (21, {"base": 3, "arm": 1}),
            (21, {"base": 3, "third": 2}),
        ]
    other = _sample("third", 2, [IDS[0], *IDS[5:9]])
    assert _measure(KVD, real, base, other, _sample("x", 4, IDS[:2])).comparisons[0].reason == (
        "no comparison: the videos that all arms have are of one group"
    )
    for metric in (FVD, FID):
        assert _measure(metric, real, base, other, _sample("x", 4, IDS[:2])).comparisons[0].reason == (
            "no comparison: the videos that all arms have are of one group"
        )
        apart = _measure(metric, real, base, _sample("arm", 2, IDS[:2]), _sample("x", 4, IDS[3:5]))
        assert apart.comparisons[0].reason == NOTHING_SHARED


def test_features_that_are_not_finite_make_no_value():
    real, arm = _sample("real", 0, IDS), _sample("fake", 1, IDS)
    arm.rows["v03"][2] = np.inf
    for metric in (KVD, FVD):
        with pytest.raises(ValueError, match="not finite"):
            _measure(metric, real, arm)


def test_an_arm_of_few_groups_is_named_and_keeps_its_value():
    real, arm = _sample("real", 0, IDS), _sample("fake", 1, IDS[:7])
    value = _measure(KVD, real, arm).values[0]
    assert np.isfinite(value.value)
    assert value.interval is None
    assert value.reason == "no interval: fake has 7 groups, an interval needs 8"


DISTANCES = [m for m in catalogue.METRICS.values() if m.measure in (distribution.fvd, distribution.kvd)]


@pytest.mark.parametrize("metric", DISTANCES, ids=lambda metric: metric.name)
def test_sets_of_one_clip_or_one_group_have_no_distance_and_the_reason_has_their_counts(metric):
    one_group = dict.fromkeys(IDS, "g")
    clip, shot = IDS[:1], IDS[:4]
    cases = [
        ([_sample("real", 0, clip), _sample("fake", 1, clip)], "real has 1 group, fake has 1"),
        ([_sample("real", 0, shot, one_group), _sample("fake", 1, shot, one_group)], "real has 1 group, fake has 1"),
        ([_sample("real", 0, shot), _sample("fake", 1, shot, one_group)], "real has 4 groups, fake has 1"),
        (
            [_sample("real", 0, clip), _sample("base", 1, shot), _sample("fake", 2, shot)],
            "real has 1 group, base has 4, fake has 4",
        ),
    ]
    for samples, told in cases:
        found = _measure(metric, *samples)
        assert {(v.value, v.interval, v.reason) for v in found.values} == {
            (None, None, f"{told}; at least 2 are needed")
        }
        assert [(v.arm, v.n_real, v.n) for v in found.values] == [
            (s.name, len(samples[0].rows), len(s.rows)) for s in samples[1:]
        ]
        assert not found.comparisons
    assert _measure(metric, _sample("real", 0, IDS[:2]), _sample("fake", 1, IDS[:2])).values[0].value is not None


def test_every_distance_of_sets_is_among_those():
    names = {"fvd", "kvd", "fid", "kid", "fvd_16f", "kvd_16f", "fvd_128f", "kvd_128f", "fid_128f", "kid_128f"}
    assert {m.name for m in DISTANCES} == {*names, "clip_fid"}


def test_identical_sets_are_zero():
    real = _sample("real", 0, IDS, GROUPS)
    assert _measure(KVD, real, Sample("fake", dict(real.rows), GROUPS)).values[0].value == 0
    assert 0 <= _measure(FVD, real, Sample("fake", dict(real.rows), GROUPS)).values[0].value < 1e-12
    assert frechet_distance(real.matrix, real.matrix) >= 0


def test_the_floor_stands_beside_the_arm_at_the_floors_own_n():
    real, arm = _sample("real", 0, IDS, GROUPS), _sample("fake", 1, IDS, GROUPS)
    first, second = halves(GROUPS)
    floor = _measure(FVD, real, arm).values[0].floor
    a, b = (np.stack([real.rows[key] for key in half]) for half in (first, second))
    assert floor.n == 12
    assert floor.value == pytest.approx(frechet_distance(a, b))
    assert floor.arm == pytest.approx(frechet_distance(a, np.stack([arm.rows[key] for key in second])))
    table_value = _measure(FVD, real, arm).values[0].value
    assert table_value < floor.arm  # of one distribution: the bias at 12 is above that at 24


def test_an_arm_of_other_names_takes_as_many_and_one_of_too_few_takes_none():
    real = _sample("real", 0, IDS, GROUPS)
    other = _measure(FVD, real, _sample("fake", 1, [f"x{i}" for i in range(20)])).values[0].floor
    assert other.arm is not None
    few = _measure(FVD, real, _sample("fake", 1, IDS[:5])).values[0].floor
    assert few.value == other.value
    assert few.arm is None


@pytest.mark.parametrize("metric", [KVD, FVD])
def test_without_the_networks_rows_there_are_no_values_and_the_reason_is_given(metric):
    sets = [Sample(name, {}, GROUPS, "no weights: of the network") for name in ("real", "base", "adapter")]
    found = _measure(metric, *sets)
    assert [(v.arm, v.value, v.reason) for v in found.values] == [
        ("base", None, "no weights: of the network"),
        ("adapter", None, "no weights: of the network"),
    ]
    assert not found.comparisons


def test_two_large_groups_have_no_floor():
    groups = {key: "a" if i < 12 else "b" for i, key in enumerate(IDS)}
    value = _measure(FVD, _sample("real", 0, IDS, groups), _sample("fake", 1, IDS, groups)).values[0]
    assert value.floor is None
    assert "no floor: two halves need at least 2 groups each, one has 1" in value.reason


def _frame_means(_, videos):
    """Stands for I3D: 400 numbers of a video that depend on each of its frames."""
    return np.stack([np.resize(frames.mean(axis=(2, 3)).astype(float), 400) for frames in videos])


def _write_noise(folder, seed, frames):
    rng = np.random.default_rng(seed)
    videos = rng.integers(0, 256, (3, frames, 8, 8, 3), dtype=np.uint8)
    for i, video in enumerate(videos):
        write_video(folder / f"w{i}.mkv", video, codec="ffv1")
    return videos


@pytest.mark.parametrize(("suffix", "counted"), [("16f", slice(0, 16)), ("128f", slice(1, 129))])
def test_fvd_and_kvd_of_a_range_of_frames_see_these_frames(tmp_path, monkeypatch, suffix, counted):
    monkeypatch.setattr(i3d, "logits", _frame_means)
    monkeypatch.setattr(i3d, "load_i3d", lambda folder: torch.nn.Identity())
    real, fake = (_write_noise(tmp_path / name, seed, 132) for name, seed in (("real", 0), ("fake", 1)))
    names = [f"kvd_{suffix}", f"fvd_{suffix}"]
    record = compare(tmp_path / "real", {"fake": tmp_path / "fake"}, settings=EvaluateSettings(metrics=names))
    a, b = (_frame_means(None, videos[:, counted]) for videos in (real, fake))
    ids = ["w0", "w1", "w2"]
    assert record.value(names[0], "fake").value == pytest.approx(KernelSums(a, b, ids, ids).value(), rel=1e-9)
    assert record.value(names[1], "fake").value == pytest.approx(frechet_distance(a, b), rel=1e-9)
    for name in names:
        definition = record.definitions[name]
        assert definition.frames == f"{counted.start} to {counted.stop - 1}"
        assert definition.primary is False
    assert set(record.definitions) == set(names), "nothing accompanies them"


def test_videos_that_are_too_short_for_a_range_are_refused():
    settings = EvaluateSettings(metrics=["kvd", "fvd_16f", "fvd_128f"])
    with pytest.raises(DatasetError, match=r"FVD-128 needs at least 129 frames a video, these have 128; .*\[kvd, fvd_"):
        computable(settings, 128)
    with pytest.raises(DatasetError, match="FVD-16 and FVD-128 need at least 129 frames a video, these have 15"):
        computable(settings, 15)
    assert [m.name for m in computable(settings, 129)] == ["kvd", "fvd_16f", "fvd_128f"]


def test_only_kvd_over_all_frames_is_primary():
    family = [m for m in catalogue.METRICS.values() if m.name.startswith(("kvd", "fvd"))]
    assert [m.name for m in family] == ["kvd", "fvd", "kvd_16f", "fvd_16f", "kvd_128f", "fvd_128f"]
    assert [m.name for m in family if m.primary] == ["kvd"]
