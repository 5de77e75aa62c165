"""Means of drawn numbers against the t intervals of scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cinesynth.errors import MetricError
from cinesynth.metrics import catalogue
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import Sample

LPIPS = catalogue.METRICS["lpips"]
IDS = [f"v{i}" for i in range(10)]


def _sample(name, numbers, ids=IDS):
    """Rows of three frames, of which the first must not count."""
    rows = {key: np.array([99.0, n - 1, n + 1]) for key, n in zip(ids, numbers, strict=True)}
    return Sample(name, rows, {key: key for key in ids})


def _draw(seed, mean, count=10):
    return np.random.default_rng(seed).normal(mean, 1, count)


def _symmetric(seed, mean, count=10):
    """Numbers without skewness, whose interval is Student's."""
    half = np.random.default_rng(seed).normal(0, 1, count // 2)
    return mean + np.concatenate([half, -half, np.zeros(count % 2)])


def test_a_paired_difference_has_the_interval_of_a_paired_t_test():
    b = _draw(1, 2)
    a = b + _symmetric(0, 1)
    found = group_means(LPIPS, Sample("real", {}, {}), [_sample("base", b), _sample("arm", a)])
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = found.comparisons[0].interval
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-9)
    assert found.values[1].value == pytest.approx(a.mean())


def test_arms_that_share_no_name_have_the_interval_of_welch():
    a, b = _symmetric(0, 3, 9), 3 * _symmetric(1, 2)
    arm = _sample("arm", a, [f"x{i}" for i in range(9)])
    found = group_means(LPIPS, Sample("real", {}, {}), [_sample("base", b), arm]).comparisons[0]
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-9)


def test_to_match_is_to_be_near_the_real_sets_mean_from_either_side():
    metric = replace(LPIPS, direction="match")
    real, above, below = _sample("real", _draw(0, 10)), _sample("above", _draw(0, 11)), _sample("below", _draw(0, 7))
    found = group_means(metric, real, [below, above])
    assert found.values[0].real == pytest.approx(_draw(0, 10).mean())
    assert found.comparisons[0].difference == pytest.approx(1 - 3)
    assert found.comparisons[0].excludes_zero is True
    assert not group_means(metric, Sample("real", {}, {}), [below, above]).comparisons


def test_where_both_distances_are_sure_the_interval_is_that_of_a_plain_difference():
    """Means on either side of the real one: |a - r| - |b - r| is then a + b - 2 r, without a kink."""
    metric, real = replace(LPIPS, direction="match"), _sample("real", np.full(10, 5.0))
    a, b = _draw(0, 9), _draw(1, 3)
    arms = [_sample("base", b), _sample("arm", a)]
    found = group_means(metric, real, arms).comparisons[0]
    other = group_means(LPIPS, real, [_sample("base", 10 - b), _sample("arm", a)]).comparisons[0]
    assert (found.interval.low, found.interval.high) == pytest.approx((other.interval.low, other.interval.high))
    assert "sides of the real value" in found.interval.method


def test_where_a_mean_may_lie_on_either_side_the_interval_holds_both():
    metric, real = replace(LPIPS, direction="match"), _sample("real", np.full(10, 5.0))
    a, b = 5.1 + _symmetric(0, 0), _draw(1, 9)
    arms = [_sample("base", b), _sample("arm", a)]
    found = group_means(metric, real, arms).comparisons[0]
    sides = [stats.ttest_rel(side, b) for side in (a, 10 - a)]
    assert found.interval.low < min(side.confidence_interval(0.95).low for side in sides) + 1e-9
    assert found.interval.high > max(side.confidence_interval(0.95).high for side in sides) - 1e-9


def test_all_comparisons_rest_on_the_videos_that_all_arms_have():
    base, arm, third = _draw(0, 3), _draw(1, 2), _draw(2, 1, 9)
    samples = [_sample("base", base), _sample("arm", arm), _sample("third", third, IDS[1:])]
    found = group_means(LPIPS, Sample("real", {}, {}), samples)
    first, second = found.comparisons
    assert first.difference == pytest.approx(arm[1:].mean() - base[1:].mean())
    assert second.difference == pytest.approx(third.mean() - base[1:].mean())
    assert (first.n, first.groups, second.n) == (9, 9, 9)
    assert (first.left_out, second.left_out) == ({"base": 1, "arm": 1}, {"base": 1})
    assert [value.n for value in found.values] == [10, 10, 9]


def test_an_arm_without_any_name_of_the_others_takes_nothing_from_them():
    samples = [
        _sample("base", _draw(0, 3)),
        _sample("arm", _draw(1, 2)),
        _sample("other", _draw(2, 1), list("abcdefghij")),
    ]
    first, second = group_means(LPIPS, Sample("real", {}, {}), samples).comparisons
    assert (first.n, first.left_out, second.n, second.left_out) == (10, {}, 10, {})
    gone = Sample("gone", {}, {}, "no weights")
    assert group_means(LPIPS, Sample("real", {}, {}), [*samples[:2], gone]).comparisons[0].n == 10


def test_arms_that_share_names_but_no_video_with_all_are_not_compared():
    samples = [
        _sample("base", _draw(0, 3)),
        _sample("a", _draw(1, 2, 5), IDS[:5]),
        _sample("b", _draw(2, 2, 5), IDS[5:]),
    ]
    for comparison in group_means(LPIPS, Sample("real", {}, {}), samples).comparisons:
        assert comparison.difference is None
        assert comparison.reason == "no comparison: there is no video that all arms have"
        assert comparison.left_out["base"] == 10


def test_a_score_that_is_not_finite_is_named_unless_its_frame_does_not_count():
    sample = _sample("arm", _draw(0, 3))
    sample.rows["v4"][0] = np.inf  # of the first frame, which LPIPS leaves out
    assert np.isfinite(group_means(LPIPS, Sample("real", {}, {}), [sample]).values[0].value)
    sample.rows["v4"][2] = np.nan
    with pytest.raises(
        MetricError, match="LPIPS of arm: v4 has a score of nan; look at that video, or leave out 'lpips'"
    ):
        group_means(LPIPS, Sample("real", {}, {}), [sample])


def test_few_groups_and_no_frames_are_reasons():
    few = [_sample(name, _draw(i, 0, 4), IDS[:4]) for i, name in enumerate(("base", "arm"))]
    found = group_means(LPIPS, Sample("real", {}, {}), few)
    assert found.comparisons[0].reason == "no interval: arm has 4 groups and base has 4 groups, an interval needs 8"
    late = replace(LPIPS, first_frame=3)
    assert group_means(late, Sample("real", {}, {}), few).values[0].reason == "no frame from 3 on"
