"""PSNR, SSIM and TSSIM against scikit-image and closed forms."""

import numpy as np
import pytest
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.ssim import GAUSSIAN, UNIFORM, Window, ssim

WINDOWS = {
    GAUSSIAN: {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    UNIFORM: {},
}


def _run(name, *items):
    return catalogue.find(name).network.run(None, items)


def _video(seed, noise, frames=3, size=(24, 37)):
    rng = np.random.default_rng(seed)
    t, y, x = np.mgrid[:frames, : size[0], : size[1]]
    waves = np.stack([127 + 100 * np.sin(x / (4 + c) + y / 7 + t * 0.3 * (c + 1)) for c in range(3)], -1)
    return (waves + noise * rng.normal(size=waves.shape)).clip(0, 255).astype(np.uint8)


REAL, FAKE = _video(0, 0), _video(1, 30)


@pytest.mark.parametrize("window", WINDOWS, ids=["Gaussian", "uniform"])
@pytest.mark.parametrize("shape", [(11, 11), (24, 37), (24, 37, 3)])
def test_ssim_is_scikit_images(window, shape):
    a = np.random.default_rng(0).random(shape)
    b = (0.6 * a + 0.4 * np.random.default_rng(1).random(shape)).clip(0, 1)
    axis = 2 if len(shape) == 3 else None
    expected = structural_similarity(a, b, data_range=1, channel_axis=axis, **WINDOWS[window])
    assert ssim(a, b, window) == pytest.approx(expected, abs=1e-10)
    assert 0.1 < expected < 0.95


@pytest.mark.parametrize("window", [GAUSSIAN, UNIFORM, Window(3, None, unbiased=False)])
def test_ssim_of_even_pictures_is_the_ratio_of_their_means(window):
    """No variance: (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b = np.full((16, 16), 0.2), np.full((16, 16), 0.7)
    assert ssim(a, b, window) == pytest.approx((2 * 0.14 + 1e-4) / (0.04 + 0.49 + 1e-4), rel=1e-9)
    assert ssim(a, a, window) == pytest.approx(1)


def test_psnr_and_ssim_of_each_pair_of_frames_are_scikit_images():
    expected = [peak_signal_noise_ratio(a, b) for a, b in zip(REAL, FAKE, strict=True)]
    assert _run("psnr", (REAL, FAKE), (FAKE, REAL)) == pytest.approx(np.array([expected, expected]), rel=1e-12)
    expected = [
        structural_similarity(a, b, data_range=255, channel_axis=2, **WINDOWS[GAUSSIAN])
        for a, b in zip(REAL, FAKE, strict=True)
    ]
    assert _run("ssim", (REAL, FAKE))[0] == pytest.approx(expected, abs=1e-9)


def test_psnr_by_hand():
    black = np.zeros((1, 10, 10, 3), np.uint8)
    one_off = black.copy()
    one_off[0, 3, 3, 1] = 3
    assert _run("psnr", (black, black + 1))[0, 0] == pytest.approx(20 * np.log10(255))
    assert _run("psnr", (black, one_off))[0, 0] == pytest.approx(10 * np.log10(255**2 * 300 / 9))
    assert _run("psnr", (black, np.full_like(black, 255)))[0, 0] == 0
    assert _run("psnr", (black, black))[0, 0] == 100, "not infinite"


def test_tssim_is_scikit_images_ssim_of_consecutive_grey_frames():
    greys = [rgb2gray(frame) for frame in FAKE]
    expected = [structural_similarity(greys[t], greys[t + 1], data_range=1) for t in range(2)]
    assert _run("tssim", (FAKE,))[0] == pytest.approx(expected, abs=1e-9)
    assert _run("tssim", (REAL[[0, 0]],))[0] == pytest.approx([1])


def test_a_frozen_video_has_the_highest_tssim_and_is_not_the_better_one(tmp_path):
    """It is further from the real set's own value than one that moves a little differently."""
    for i in range(2):
        for name, video in (("real", _video(i, 2)), ("near", _video(i, 4)), ("frozen", _video(i, 0)[[0, 0, 0]])):
            write_video(tmp_path / name / f"w{i}.mkv", video, codec="ffv1")
    arms = {name: tmp_path / name for name in ("near", "frozen")}
    record = compare(tmp_path / "real", arms, settings=EvaluateSettings(metrics=["tssim", "psnr", "ssim"]))
    frozen, near = (record.value("tssim", name) for name in ("frozen", "near"))
    assert frozen.value == pytest.approx(1)
    assert near.value < frozen.value
    distance = [abs(value.value - value.real) for value in (frozen, near)]
    assert record.comparison("tssim", "frozen").difference == pytest.approx(distance[0] - distance[1])
    assert distance[0] > distance[1]
    assert record.definitions["psnr"].frames.startswith("1 to 2")
    assert not any(record.definitions[name].primary for name in ("tssim", "psnr", "ssim"))


def test_frames_smaller_than_the_window_leave_ssim_out_with_the_reason(tmp_path):
    for name in ("real", "fake"):
        write_video(tmp_path / name / "w.mkv", np.zeros((3, 8, 6, 3), np.uint8), codec="ffv1")
    record = compare(
        tmp_path / "real", {"fake": tmp_path / "fake"}, settings=EvaluateSettings(metrics=["psnr", "ssim", "tssim"])
    )
    assert record.value("psnr", "fake").value == 100
    assert "SSIM needs sides of at least 11" in record.value("ssim", "fake").reason
    assert "TSSIM needs sides of at least 7" in record.value("tssim", "fake").reason
