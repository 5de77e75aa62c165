"""Buckets and crops: what of a picture is kept, at which size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from cinesynth.data.plan.geometry import choose_size, crop_box, crop_resize, resize
from cinesynth.data.records import Box
from cinesynth.wan.family import size_tables

SQUARE = Fraction(1)


def _whole(width: int, height: int) -> Box:
    return 0.0, 0.0, float(width), float(height)


@pytest.mark.parametrize(("name", "area"), [("480p", 480 * 832), ("720p", 720 * 1280)])
def test_tables_hold_wans_areas_in_sides_that_it_takes(name: str, area: int) -> None:
    for width, height in size_tables()[name]:
        assert width % 16 == height % 16 == 0
        assert 0.96 * area <= width * height <= area
        assert (height, width) in size_tables()[name]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1920, 1080, (832, 480)),
        (1080, 1920, (480, 832)),
        (1920, 800, (960, 416)),
        (1440, 1080, (720, 544)),
        (1000, 1000, (624, 624)),
    ],
)
def test_the_nearest_aspect_is_chosen(width: int, height: int, size: tuple[int, int]) -> None:
    assert choose_size(_whole(width, height), SQUARE, size_tables()["480p"], 1.25) == size


def test_the_largest_size_that_needs_no_more_enlargement_than_allowed_is_chosen() -> None:
    sizes = [*size_tables()["480p"], *size_tables()["720p"]]
    assert choose_size(_whole(1920, 1080), SQUARE, sizes, 1.0) == (1280, 720)
    assert choose_size(_whole(854, 480), SQUARE, sizes, 1.0) == (832, 480)
    assert choose_size(_whole(640, 360), SQUARE, sizes, 1.25) is None
    assert choose_size(_whole(640, 360), SQUARE, sizes, 1.4) == (832, 480)
    # 720 x 576 in pixels 64:45 wide is a 16:9 picture.
    assert choose_size(_whole(720, 576), Fraction(64, 45), size_tables()["480p"], 1.0) == (832, 480)


def test_the_crop_is_the_largest_box_of_the_aspect_where_its_centre_says() -> None:
    assert crop_box((0, 0, 120, 40), SQUARE, (16, 16)) == (40, 0, 40, 40)
    assert crop_box((0, 0, 120, 40), SQUARE, (16, 16), (0, 0)) == (0, 0, 40, 40)
    assert crop_box((10, 5, 120, 40), SQUARE, (16, 16), (1, 0.5)) == (90, 5, 40, 40)
    assert crop_box((0, 0, 40, 120), SQUARE, (32, 16), (0.5, 0.25)) == (0, 25, 40, 20)
    assert crop_box((0, 0, 64, 64), Fraction(2), (32, 32)) == (16, 0, 32, 64)


def test_a_circle_on_a_display_is_a_circle_again_in_square_pixels() -> None:
    y, x = np.mgrid[0:64, 0:64]
    stored = np.where(((2 * (x - 31.5)) ** 2 + (y - 31.5) ** 2 < 20**2)[..., None], 255, 0).astype(np.uint8)
    shown = crop_resize(np.repeat(stored[None], 3, -1), 64, 128, Fraction(2))[0, ..., 0] > 127
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
    assert 38 <= np.ptp(rows) <= 41


def test_only_what_is_in_the_box_is_shown() -> None:
    frames = np.zeros((1, 40, 120, 3), np.uint8)
    frames[:, :, 40:80] = 200  # a central square of a 3:1 picture
    square = resize(frames, (16, 16), (40, 0, 40, 40))[0].astype(int)
    assert np.abs(square - 200).max() == 0
    assert np.array_equal(crop_resize(frames, 16, 16)[0], square)
    assert resize(frames, (32, 16), (0, 0, 120, 40)).shape == (1, 16, 32, 3)
