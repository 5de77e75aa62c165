import numpy as np
import pytest

from cinesynth.metrics.mmd import KernelSums, polynomial_mmd
from cinesynth.metrics.statistics import NoInterval


def _double_loop(x, y):
    k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731  # the definition, in one line
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_equals_the_double_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(7, 5)) + 0.5
    assert polynomial_mmd(x, y) == pytest.approx(_double_loop(x, y), rel=1e-12)


def test_leaving_groups_out_equals_computing_without_them():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(8, 4)) + 1
    gx, gy = list("aabbccddee"), list("aabbccdf")
    names = list("abcdef")
    found = KernelSums(x, y).leave_out(gx, gy, names)
    for name, value in zip(names, found, strict=True):
        kept_x, kept_y = x[[g != name for g in gx]], y[[g != name for g in gy]]
        assert value == pytest.approx(_double_loop(kept_x, kept_y), rel=1e-10)


def test_unbiased_where_the_biased_estimate_is_not():
    rng = np.random.default_rng(2)
    values = np.array([polynomial_mmd(*rng.normal(size=(2, 12, 40))) for _ in range(400)])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert (values < 0).any()


def test_expectation_is_the_closed_form_for_shifted_normals():
    """In one dimension with x ~ N(0,1), y ~ N(1,1): the sum over binomial terms of (E x^k - E y^k)^2."""
    rng = np.random.default_rng(3)
    moments_x, moments_y = [1, 0, 1, 0], [1, 1, 2, 4]
    expected = sum(c * (a - b) ** 2 for c, a, b in zip([1, 3, 3, 1], moments_x, moments_y, strict=True))
    values = np.array([polynomial_mmd(rng.normal(size=(30, 1)), rng.normal(size=(30, 1)) + 1) for _ in range(1500)])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * error


def test_too_small_samples_are_refused():
    with pytest.raises(ValueError, match="N > 1"):
        polynomial_mmd(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(NoInterval, match="fewer than two"):
        KernelSums(np.zeros((3, 3)), np.zeros((5, 3))).leave_out(list("aab"), list("abcde"), ["a"])
