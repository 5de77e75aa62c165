"""ST-LPIPS against the numbers that the package `stlpips-pytorch` 0.0.2 gives with its own network."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cinesynth.config import EvaluateSettings
from cinesynth.metrics import catalogue
from cinesynth.metrics.networks.lpips import frame_distances, load_lpips
from cinesynth.metrics.networks.stlpips import smoothed

METRIC = catalogue.METRICS["st_lpips"]


@pytest.fixture(scope="module")
def model():
    return METRIC.network.load(EvaluateSettings())


def _pattern(t, height=48, width=80):
    y, x = np.mgrid[:height, :width]
    colours = [127 + 120 * np.sin(0.1 * (c + 1) * x + 0.07 * y * (c - 1) + 0.4 * t * (c + 1) + c) for c in range(3)]
    return np.stack(colours, -1).astype(np.uint8)


def _video(*times, **size):
    return np.stack([_pattern(t, **size) for t in times])


def test_distances_are_those_of_the_package(model):
    found = METRIC.network.run(model, [(_video(0, 0, 0), _video(1, 2, 5))])
    assert found[0] == pytest.approx([0.147149, 0.376281, 0.470770], abs=2e-6)
    odd = {"height": 33, "width": 47}
    assert METRIC.network.run(model, [(_video(0, **odd), _video(3, **odd))])[0, 0] == pytest.approx(0.508668, abs=2e-6)
    for side, expected in ((64, 0.487037), (32, 0.439075)):
        black, white = np.zeros((1, side, side, 3), np.uint8), np.full((1, side, side, 3), 255, np.uint8)
        assert METRIC.network.run(model, [(black, white)])[0, 0] == pytest.approx(expected, abs=2e-6)


def test_it_hardly_sees_a_shift_by_a_pixel_that_lpips_sees(model):
    soft = gaussian_filter(np.random.default_rng(0).normal(size=(96, 97, 3)), (1, 1, 0))
    picture = (127 + 60 * soft / soft.std()).clip(0, 255).astype(np.uint8)[None]
    pair = picture[:, :, :-1], picture[:, :, 1:]
    tolerant = METRIC.network.run(model, [pair])[0, 0]
    assert 0 < tolerant < frame_distances(load_lpips(), *pair)[0] / 4
    assert METRIC.network.run(model, [(picture, picture)])[0, 0] == 0


def test_smoothing_by_hand():
    x = torch.arange(5.0).repeat(5, 1)[None, None]
    mirrored = [2, 1, 0, 1, 2, 3, 4, 3, 2]
    row = [mirrored[i] / 4 + mirrored[i + 1] / 2 + mirrored[i + 2] / 4 for i in (0, 2, 4, 6)]
    torch.testing.assert_close(smoothed(x), torch.tensor(row).repeat(4, 1)[None, None])


def test_it_bears_its_own_name_and_weights():
    assert (METRIC.label, METRIC.primary, METRIC.direction) == ("ST-LPIPS", False, "lower")
    assert list(METRIC.network.weights(EvaluateSettings())) == ["st-lpips-alex"]
    assert [m.name for m in catalogue.chosen(["st_lpips"])] == ["st_lpips"]
