import numpy as np
import pytest
from scipy import linalg

from cinesynth.metrics import frechet
from cinesynth.metrics.frechet import frechet_distance


def _whitened(n, d, rng):
    """Samples with mean exactly 0 and covariance (ddof 0) exactly the identity."""
    x = rng.normal(size=(n, d))
    x -= x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T


def test_diagonal_gaussians_have_the_closed_form():
    rng = np.random.default_rng(0)
    sigma_a, sigma_b, shift = rng.uniform(0.5, 3, 6), rng.uniform(0.5, 3, 6), rng.normal(size=6)
    a, b = _whitened(200, 6, rng) * sigma_a, _whitened(150, 6, rng) * sigma_b + shift
    expected = (shift**2).sum() + ((sigma_a - sigma_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(300, 250), (15, 60), (12, 9)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_agrees_with_the_matrix_square_root(n, m, ddof):
    rng = np.random.default_rng(n)
    mixing = rng.normal(size=(20, 20))
    a, b = rng.normal(size=(n, 20)) @ mixing, rng.normal(size=(m, 20)) * 2 + 1
    s, r = np.cov(a.T, ddof=ddof), np.cov(b.T, ddof=ddof)
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(s + r) - 2 * np.trace(linalg.sqrtm(s @ r)).real
    assert frechet_distance(a, b, ddof) == pytest.approx(expected, rel=1e-5)


def test_both_ways_to_the_trace_agree_and_the_fast_one_declines_what_is_nearly_singular(monkeypatch):
    rng = np.random.default_rng(3)
    scales = np.geomspace(1, 1e-2, 40)
    a, b = rng.normal(size=(90, 40)) * scales, rng.normal(size=(80, 40)) * scales + 0.1
    fast = frechet_distance(a, b)
    assert frechet.root_trace(np.cov(a.T), np.cov(b.T)) > 0
    near = a.copy()
    near[:, 0] = near[:, 1] + 1e-7 * near[:, 2]
    assert frechet.root_trace(np.cov(near.T), np.cov(b.T)) is None
    assert frechet.root_trace(np.zeros((4, 4)), np.eye(4)) is None
    monkeypatch.setattr(frechet, "root_trace", lambda *_: None)
    assert frechet_distance(a, b) == pytest.approx(fast, rel=1e-10)
    assert frechet_distance(near, near) == pytest.approx(0, abs=1e-9)


def test_a_sample_is_at_distance_zero_from_itself_and_order_does_not_matter():
    x = np.random.default_rng(1).normal(size=(48, 400))
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_small_samples_of_one_distribution_are_far_apart():
    rng = np.random.default_rng(2)
    near, far = (frechet_distance(*rng.normal(size=(2, n, 100))) for n in (800, 40))
    assert far > 5 * near > 0


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="one d"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="more than 1 rows"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)), ddof=1)
