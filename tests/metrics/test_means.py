"""Means of drawn numbers against the t intervals of scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

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


def test_a_paired_difference_has_the_interval_of_a_paired_t_test():
    a, b = _draw(0, 3), _draw(1, 2)
    found = group_means(LPIPS, Sample("real", {}, {}), [_sample("base", b), _sample("arm", a)])
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = found.comparisons[0].interval
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-9)
    assert found.values[1].value == pytest.approx(a.mean())


def test_arms_that_share_no_name_have_the_interval_of_welch():
    a, b = _draw(0, 3, 9), 3 * _draw(1, 2)
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


def test_few_groups_and_no_frames_are_reasons():
    few = [_sample(name, _draw(i, 0, 4), IDS[:4]) for i, name in enumerate(("base", "arm"))]
    found = group_means(LPIPS, Sample("real", {}, {}), few)
    assert found.comparisons[0].reason == "no interval: arm has 4 groups and base has 4 groups, an interval needs 8"
    late = replace(LPIPS, first_frame=3)
    assert group_means(late, Sample("real", {}, {}), few).values[0].reason == "no frame from 3 on"
