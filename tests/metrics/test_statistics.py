import numpy as np
import pytest
from scipy import stats

from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.statistics import (
    NoInterval,
    group_mean,
    group_mean_interval,
    halves,
    jackknife,
    strata,
)


def test_jackknife_of_a_mean_is_the_t_interval():
    x = np.random.default_rng(0).normal(3, 2, size=17)
    found = jackknife(x.mean(), [[np.delete(x, i).mean() for i in range(len(x))]])
    assert found.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(17), rel=1e-12)
    low, high = stats.t.interval(0.95, 16, loc=x.mean(), scale=stats.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_two_strata_give_the_two_sample_variance():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=8), rng.normal(size=11)
    difference = x.mean() - y.mean()
    replicates = [
        [np.delete(x, i).mean() - y.mean() for i in range(8)],
        [x.mean() - np.delete(y, i).mean() for i in range(11)],
    ]
    found = jackknife(difference, replicates)
    assert found.standard_error**2 == pytest.approx(x.var(ddof=1) / 8 + y.var(ddof=1) / 11, rel=1e-12)
    assert found.degrees_of_freedom == 17


def test_windows_of_a_group_count_once():
    values = {"a1": 1.0, "a2": 3.0, "b1": 5.0, "c1": 4.0, "c2": 4.0, "c3": 4.0}
    groups = {key: key[0] for key in values}
    assert group_mean(values, groups) == pytest.approx((2 + 5 + 4) / 3)
    found = group_mean_interval(values, groups)
    assert found.standard_error == pytest.approx(stats.sem([2, 5, 4]), rel=1e-12)
    assert found.degrees_of_freedom == 2


def test_one_group_gives_no_interval():
    with pytest.raises(NoInterval, match="at least 2 groups"):
        group_mean_interval({"a": 1.0, "b": 2.0}, {"a": "x", "b": "x"})


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
    assert [len(half) for half in halves({"a": "x", "b": "x", "c": "y", "d": "z"})] == [2, 2]


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


def test_a_large_difference_is_seen():
    rng = np.random.default_rng(5)
    assert sum(_kvd_difference(rng, 16, 0.8).low > 0 for _ in range(20)) >= 15
