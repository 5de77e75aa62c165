import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.statistics import (
    NoInterval,
    group_mean,
    group_mean_interval,
    halves,
    jackknife,
    require_groups,
    strata,
)


def _symmetric(rng, count, mean=0.0, spread=1.0):
    """Numbers that lie alike on both sides of their mean: without skewness the interval is Student's."""
    half = spread * rng.normal(size=count // 2)
    return mean + np.concatenate([half, -half, np.zeros(count % 2)])


def _without_each(x):
    return [np.delete(x, i).mean() for i in range(len(x))]


def test_jackknife_of_a_mean_is_the_t_interval():
    x = _symmetric(np.random.default_rng(0), 17, 3, 2)
    found = jackknife(x.mean(), [_without_each(x)])
    assert found.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(17), rel=1e-12)
    low, high = stats.t.interval(0.95, 16, loc=x.mean(), scale=stats.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_two_strata_give_the_two_sample_variance():
    rng = np.random.default_rng(1)
    x, y = _symmetric(rng, 8), _symmetric(rng, 11)
    difference = x.mean() - y.mean()
    replicates = [[w - y.mean() for w in _without_each(x)], [x.mean() - w for w in _without_each(y)]]
    found = jackknife(difference, replicates)
    assert found.standard_error**2 == pytest.approx(x.var(ddof=1) / 8 + y.var(ddof=1) / 11, rel=1e-12)
    welch = stats.ttest_ind(x, y, equal_var=False)
    assert found.degrees_of_freedom == pytest.approx(welch.df, rel=1e-12)
    low, high = welch.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_skewed_shares_widen_the_interval_on_the_side_of_their_tail():
    """The far end solves Hall's cubic, with the skewness of scipy; the near one stays Student's."""
    x = np.random.default_rng(2).exponential(size=12)
    found = jackknife(x.mean(), [_without_each(x)])
    low, high = stats.t.interval(0.95, 11, loc=x.mean(), scale=stats.sem(x))
    s, quantile = stats.skew(x) / np.sqrt(12), stats.t.ppf(0.025, 11)
    far = brentq(lambda t: t + s * t**2 / 3 + s**2 * t**3 / 27 + s / 6 - quantile, -100, 0)
    assert found.low == pytest.approx(low, rel=1e-12)
    assert found.high == pytest.approx(x.mean() - far * stats.sem(x), rel=1e-9)
    assert found.high > high
    mirrored = jackknife(-x.mean(), [[-w for w in _without_each(x)]])
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), rel=1e-12)


def test_a_lone_group_widens_the_interval_by_its_own_influence():
    x = np.random.default_rng(6).normal(size=12)
    value, without = x.mean(), [np.delete(x, i).mean() for i in range(12)]
    whole, parted = jackknife(value, [without]), jackknife(value, [without[:1], without[1:]])
    assert parted.standard_error**2 == pytest.approx(
        (without[0] - value) ** 2 + 10 / 11 * sum((w - np.mean(without[1:])) ** 2 for w in without[1:]), rel=1e-12
    )
    assert parted.degrees_of_freedom < whole.degrees_of_freedom == 11
    with pytest.raises(NoInterval, match="at least 2 groups"):
        jackknife(value, [without[:1]])


def test_where_nothing_varies_the_interval_is_the_value():
    found = jackknife(0.0, [[0.0] * 5, [0.0]])
    assert (found.low, found.high, found.degrees_of_freedom) == (0, 0, 5)


def test_windows_of_a_group_count_once():
    values = {"a1": 1.0, "a2": 3.0, "b1": 5.0, "c1": 4.0, "c2": 4.0, "c3": 4.0}
    values |= {f"{name}1": float(i) for i, name in enumerate("defgh")}
    groups = {key: key[0] for key in values}
    assert group_mean(values, groups) == pytest.approx((2 + 5 + 4 + 10) / 8)
    found = group_mean_interval(values, groups, "arm")
    assert found.standard_error == pytest.approx(stats.sem([2, 5, 4, 0, 1, 2, 3, 4]), rel=1e-12)
    assert found.degrees_of_freedom == 7


def test_too_few_groups_give_no_interval_and_the_sets_are_named():
    with pytest.raises(NoInterval, match="base has 7 groups, an interval needs 8"):
        group_mean_interval({str(i): 1.0 for i in range(7)}, {str(i): str(i) for i in range(7)}, "base")
    with pytest.raises(NoInterval, match="real has 1 group and adapter has 2 groups, an interval"):
        require_groups({"real": 1, "base": 8, "adapter": 2})


def test_strata_are_the_patterns_of_membership():
    assert strata(["a", "b"], ["b", "a", "a"]) == [["a", "b"]]
    assert strata(["a", "b"], ["c", "d"]) == [["a", "b"], ["c", "d"]]
    assert strata(["a", "b", "c"], ["b", "c", "d"]) == [["a"], ["b", "c"], ["d"]]


def test_halves_share_no_group_and_are_equal():
    groups = {f"v{i:02}": f"g{i // 3}" for i in range(25)}
    a, b = halves(groups)
    assert len(a) == len(b) >= 10
    assert not {groups[key] for key in a} & {groups[key] for key in b}
    assert halves(dict(reversed(groups.items()))) == (a, b)
    assert [len(half) for half in halves({"a": "x", "b": "y", "c": "z", "d": "w"})] == [2, 2]


def test_there_are_no_halves_of_a_single_group():
    with pytest.raises(NoInterval, match="one has 1"):
        halves({"a": "x", "b": "x", "c": "y", "d": "z"})
    with pytest.raises(NoInterval, match="one has 0"):
        halves({"a": "x", "b": "x"})


def _kvd_difference(rng, groups, shift):
    """One simulated study: two arms, the second `shift` further off, windows of a group correlated."""
    d, each = 6, 2
    labels = [f"g{i // each}" for i in range(groups * each)]

    def sample(offset):
        shared = np.repeat(rng.normal(size=(groups, d)), each, axis=0)
        return 0.7 * shared + 0.7 * rng.normal(size=shared.shape) + offset

    real, base, arm = sample(0), sample(0.6), sample(0.6 + shift)
    sums = [KernelSums(real, x, labels, labels) for x in (arm, base)]
    names = sorted(set(labels))
    without = np.subtract(*(s.leave_out(names) for s in sums))
    return jackknife(sums[0].value() - sums[1].value(), [without.tolist()])


def test_the_interval_of_a_difference_covers_the_truth():
    """Equal arms: the truth is 0. 200 studies of 16 groups; 95 % nominal, at least 90 % asked for."""
    rng = np.random.default_rng(4)
    covered = sum(not _kvd_difference(rng, 16, 0.0).excludes_zero for _ in range(200))
    assert covered >= 180


def test_the_interval_of_an_arm_that_lacks_a_video_covers_the_truth():
    """Of 12 real windows one has no counterpart: a stratum of one group."""
    rng, covered = np.random.default_rng(7), 0
    names = [f"g{i}" for i in range(12)]
    for _ in range(200):
        real, arm = rng.normal(size=(12, 6)), rng.normal(size=(11, 6))
        sums = KernelSums(real, arm, names, names[:-1])
        found = jackknife(sums.value(), [sums.leave_out(part) for part in strata(names, names[:-1])])
        covered += not found.excludes_zero
    assert covered >= 180


def test_a_large_difference_is_seen():
    rng = np.random.default_rng(5)
    assert sum(_kvd_difference(rng, 16, 0.8).low > 0 for _ in range(20)) >= 15
