import numpy as np
import pytest

from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.statistics import NoInterval


def _alone(n, name="v"):
    """Names of n groups of one row."""
    return [f"{name}{i}" for i in range(n)]


def _independent(x, y):
    return KernelSums(x, y, _alone(len(x), "real"), _alone(len(y), "fake")).value()


def _double_loop(x, y, x_groups, y_groups):
    """The definition: the mean over pairs of different groups of each of the three kernels."""

    def mean(a, b, a_groups, b_groups):
        kernel = [
            (float(row @ other) / len(row) + 1) ** 3
            for row, group in zip(a, a_groups, strict=True)
            for other, other_group in zip(b, b_groups, strict=True)
            if group != other_group
        ]
        return sum(kernel) / len(kernel)

    within = mean(x, x, x_groups, x_groups) + mean(y, y, y_groups, y_groups)
    return within - 2 * mean(x, y, x_groups, y_groups)


def test_equals_the_double_loop_over_pairs_of_different_groups():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(7, 5)) + 0.5
    for groups in ((list("aaabbcddd"), list("abbcdde")), (_alone(9), _alone(7)), (_alone(9, "x"), _alone(7, "y"))):
        assert KernelSums(x, y, *groups).value() == pytest.approx(_double_loop(x, y, *groups), rel=1e-12)


def test_leaving_groups_out_equals_computing_without_them():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(8, 4)) + 1
    gx, gy = list("aabbccddee"), list("aabbccdf")
    names = list("abcdef")
    sums = KernelSums(x, y, gx, gy)
    for name, value in zip(names, sums.leave_out(names), strict=True):
        kept = x[[g != name for g in gx]], y[[g != name for g in gy]]
        groups = [g for g in gx if g != name], [g for g in gy if g != name]
        assert value == pytest.approx(_double_loop(*kept, *groups), rel=1e-10)
    assert sums.leave_out(["nowhere"]) == [pytest.approx(sums.value(), rel=1e-12)]


@pytest.mark.parametrize("groups", [list("abcdefgh"), list("aaaabbcd"), list("aaaaaaab")])
def test_identical_samples_give_exactly_zero_with_and_without_each_group(groups):
    x = 5 * np.random.default_rng(2).normal(size=(len(groups), 400))
    sums = KernelSums(x, x.copy(), groups, groups)
    assert sums.value() == 0.0
    if len(set(groups)) > 2:
        assert sums.leave_out(sorted(set(groups))) == [0.0] * len(set(groups))


def test_unbiased_where_the_biased_estimate_is_not():
    rng = np.random.default_rng(3)
    values = np.array([_independent(*rng.normal(size=(2, 12, 40))) for _ in range(400)])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert (values < 0).any()


def test_paired_arms_of_one_distribution_average_zero():
    """Windows share a scene, and each generated window shares 80 % of its variance with its own real one."""
    rng = np.random.default_rng(4)
    groups = [
        name for name, windows in zip("abcdefghij", [1, 1, 1, 2, 2, 2, 3, 3, 4, 5], strict=True) for _ in range(windows)
    ]
    place = np.array([ord(name) - ord("a") for name in groups])
    values, paired_counted = [], []
    for _ in range(400):
        scene = rng.normal(size=(10, 20))[place]
        window = np.sqrt(0.6) * scene + np.sqrt(0.2) * rng.normal(size=scene.shape)
        real, fake = (window + np.sqrt(0.2) * rng.normal(size=scene.shape) for _ in range(2))
        values.append(KernelSums(real, fake, groups, groups).value())
        paired_counted.append(_double_loop(real[:6], fake[:6], _alone(6, "real"), _alone(6, "fake")))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(paired_counted) < -20 * error  # what counting a window with its own real one gives


def test_expectation_is_the_closed_form_for_shifted_normals():
    """In one dimension with x ~ N(0,1), y ~ N(1,1): the sum over binomial terms of (E x^k - E y^k)^2."""
    rng = np.random.default_rng(5)
    moments_x, moments_y = [1, 0, 1, 0], [1, 1, 2, 4]
    expected = sum(c * (a - b) ** 2 for c, a, b in zip([1, 3, 3, 1], moments_x, moments_y, strict=True))
    values = np.array([_independent(rng.normal(size=(30, 1)), rng.normal(size=(30, 1)) + 1) for _ in range(600)])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * error


def test_too_small_samples_are_refused():
    with pytest.raises(ValueError, match="at least 2 groups, not 1"):
        KernelSums(np.zeros((2, 3)), np.zeros((5, 3)), list("aa"), list("abcde"))
    with pytest.raises(ValueError, match="a group for each row"):
        KernelSums(np.zeros((3, 3)), np.zeros((5, 3)), list("ab"), list("abcde"))
    with pytest.raises(NoInterval, match="fewer than two groups"):
        KernelSums(np.zeros((3, 3)), np.zeros((5, 3)), list("aab"), list("abcde")).leave_out(["a"])
