"""Scores of pictures, against known answers and scikit-image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cinesynth.data.scan import scores
from cinesynth.scripted.photographs import load_photograph


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return cv2.resize(scores.grey(load_photograph("coffee")), (256, 160), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("shape", [(11, 256), (31, 96), (8, 8), (300, 20)])
def test_motion_is_not_measured_in_pictures_too_narrow_for_it(shape: tuple[int, int]) -> None:
    """In most of these, OpenCV's optical flow ends the process."""
    narrow = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    assert scores.motion(narrow, narrow, 0.5) is None
    assert scores.motion(np.zeros((32, 256), np.uint8), np.zeros((32, 256), np.uint8), 0.5) == 0


@pytest.mark.parametrize("shift", [2, 6])
def test_motion_is_in_view_widths_a_second(shift: int, picture: np.ndarray) -> None:
    large = cv2.resize(picture, (320, 200))
    before, after = large[:160, 20:276], large[:160, 20 + shift : 276 + shift]
    assert scores.motion(before, after, 0.5) == pytest.approx(shift / 256 / 0.5, rel=0.15)
    assert scores.motion(before, before, 0.5) < 1e-4


def test_blur_is_that_of_scikit_image(picture: np.ndarray) -> None:
    from skimage.measure import blur_effect

    values = []
    for deviation in (0, 1, 3):
        soft = cv2.GaussianBlur(picture, (0, 0), deviation) if deviation else picture
        values.append(scores.blur(soft))
        assert values[-1] == pytest.approx(blur_effect(soft, h_size=11), abs=1e-4)
    assert values == sorted(values)
    assert scores.blur(np.full((32, 32), 90, np.uint8)) == 1


def test_exposure_counts_what_is_clipped() -> None:
    image = np.full((10, 10), 128, np.uint8)
    image[:2] = 0
    image[-1] = 255
    luma, clipped = scores.exposure(image)
    assert luma == pytest.approx((70 * 128 + 10 * 255) / 100 / 255)
    assert clipped == pytest.approx(0.3)


def test_noise_of_a_codec_is_no_change_and_a_step_is(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(picture + rng.integers(-1, 2, picture.shape) * (rng.random(picture.shape) < 0.5), 0, 255)
    assert scores.unchanged(picture, noisy.astype(np.uint8))
    assert not scores.unchanged(picture[:, :-1], picture[:, 1:])


@pytest.mark.parametrize(("top", "left"), [(20, 0), (0, 32), (14, 20)])
def test_black_bars_are_found_with_noise_in_them(top: int, left: int, picture: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    framed = rng.integers(12, 20, picture.shape).astype(np.uint8)
    inside = slice(top, 160 - top), slice(left, 256 - left)
    framed[inside] = np.maximum(picture[inside], 60)
    vertical, horizontal = scores.black_bars(*scores.edge_profile(framed))
    assert vertical == pytest.approx((top + 1) / 160 if top else 0, abs=1.01 / 160)
    assert horizontal == pytest.approx((left + 1) / 256 if left else 0, abs=1.01 / 256)


def test_dark_pictures_have_no_bars(picture: np.ndarray) -> None:
    sky = picture.astype(float) * np.linspace(0, 1, 160)[:, None] ** 3  # black at the top alone, and gently
    for dark in (np.zeros_like(picture), sky.astype(np.uint8), picture):
        assert scores.black_bars(*scores.edge_profile(dark)) == (0, 0)


def test_the_hash_forgives_scale_light_and_compression_and_tells_pictures_apart(picture: np.ndarray) -> None:
    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return (scores.perceptual_hash(a) ^ scores.perceptual_hash(b)).bit_count()

    small = cv2.resize(picture, (160, 100), interpolation=cv2.INTER_AREA)
    darker = (picture * 0.8 + 10).astype(np.uint8)
    coded = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 0)
    assert max(distance(picture, other) for other in (small, darker, coded)) <= 6
    assert min(distance(picture, other) for other in (picture[:, ::-1], scores.grey(load_photograph("rocket")))) > 12
    assert scores.perceptual_hash(np.full((64, 64), 100, np.uint8)) == 0
