import numpy as np
import pytest

from cinesynth.errors import MediaError
from cinesynth.metrics.networks.lpips import frame_distances, load_lpips


@pytest.fixture(scope="module")
def alex():
    return load_lpips("alex")


def _black_and_white(frames=1, side=64):
    return np.zeros((frames, side, side, 3), np.uint8), np.full((frames, side, side, 3), 255, np.uint8)


def test_alex_gives_the_golden_value(alex):
    assert frame_distances(alex, *_black_and_white()) == pytest.approx(0.81395, abs=1e-4)


def test_vgg_gives_the_golden_value():
    assert frame_distances(load_lpips("vgg"), *_black_and_white()) == pytest.approx(0.45384, abs=1e-4)


def test_zero_for_equal_frames_symmetric_and_rising_with_noise(alex):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    clean = np.stack([127 + 100 * np.sin(x / (5 + t) + y / 9)[..., None].repeat(3, -1) for t in range(3)])
    noisy = [(clean + s * rng.normal(size=clean.shape)).clip(0, 255).astype(np.uint8) for s in (0, 15, 60)]
    assert frame_distances(alex, noisy[0], noisy[0]).tolist() == [0, 0, 0]
    little, much = (frame_distances(alex, noisy[0], n) for n in noisy[1:])
    assert (little > 0).all()
    assert (little < much).all()
    assert frame_distances(alex, noisy[2], noisy[0]) == pytest.approx(much, rel=1e-5)


def test_many_frames_in_chunks_equal_single_frames(alex, monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 5, 64, 64, 3), dtype=np.uint8)
    together = frame_distances(alex, a, b)
    monkeypatch.setattr("cinesynth.metrics.networks.lpips._PIXELS_AT_ONCE", 1)
    assert frame_distances(alex, a, b) == pytest.approx(together, rel=1e-5)


def test_shapes_that_cannot_be_compared_are_refused(alex):
    black, white = _black_and_white()
    with pytest.raises(MediaError, match="one shape"):
        frame_distances(alex, black, white[:, :32])
    with pytest.raises(MediaError, match="at least 32"):
        frame_distances(alex, *_black_and_white(side=16))
