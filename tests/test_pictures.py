"""First frames come out as a person sees them, or are refused in one line that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinesynth.errors import MediaError
from cinesynth.pictures import PictureLimits, check_picture, crop_to, read_picture

RED, GREEN = (250, 10, 10), (10, 250, 10)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half green."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_picture(path)
    assert (image.mode, image.info) == ("RGB", {})
    return np.asarray(image).astype(int)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    found = pixels(saved(tmp_path / "phone.jpg", halves(), exif=exif, quality=95))
    assert found.shape == (40, 20, 3)
    assert np.abs(found[5, 10] - RED).max() < 12, "left became top"


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bits_are_scaled_and_not_clipped(name: str, tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert pixels(saved(tmp_path / name, grey))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_floats_are_scaled_from_0_to_1_and_another_range_is_refused(tmp_path: Path) -> None:
    grey = np.array([[0, 0.5, 1]], np.float32)
    assert pixels(saved(tmp_path / "grey.tif", Image.fromarray(grey)))[0, :, 0].tolist() == [0, 128, 255]
    for bad in (grey * 255, grey - 0.5, np.array([[0, np.nan]], np.float32)):
        path = saved(tmp_path / "odd.tif", Image.fromarray(bad))
        with pytest.raises(MediaError, match=r"odd\.tif has samples from .* 0 to 1 is expected; save it"):
            read_picture(path)


def test_what_is_transparent_is_black_whatever_colour_lies_under_it(tmp_path: Path) -> None:
    palette = halves().quantize(4)
    clear = palette.getpixel((0, 0))
    found = pixels(saved(tmp_path / "palette.png", palette, transparency=clear))
    assert found[10, 5].tolist() == [0, 0, 0]
    assert found[10, 35].tolist() == list(GREEN)
    assert pixels(saved(tmp_path / "clear.png", Image.new("RGBA", (4, 4), (255, 255, 255, 0)))).max() == 0
    grey = Image.fromarray(np.array([[1000, 65535]], np.uint16))
    assert pixels(saved(tmp_path / "grey.png", grey, transparency=65535))[0, :, 0].tolist() == [4, 0]


def test_a_print_s_colours_are_converted(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(saved(tmp_path / "print.jpg", ink, quality=95))[8, 8] - (255, 0, 0)).max() < 30


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that promises 3.6e9 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    return path


def test_what_is_no_picture_is_refused_in_one_line_with_its_name(tmp_path: Path) -> None:
    cut = saved(tmp_path / "cut.jpg", halves(), quality=95)
    cut.write_bytes(cut.read_bytes()[:-200])
    (tmp_path / "notes.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    saved(tmp_path / "moving.webp", halves(), save_all=True, append_images=[Image.new("RGB", (40, 20), GREEN)])
    bomb(tmp_path / "bomb.png")
    reasons = {
        "cut.jpg": "damaged",
        "notes.png": "no picture of these formats: JPEG, PNG",
        "folder.png": "is not a file",
        "link.png": "No such file",
        "moving.webp": "is animated",
        "bomb.png": "too many pixels",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason) as refused:
            check_picture(tmp_path / name, "shots.0.image")
        assert str(refused.value).startswith(f"shots.0.image: {tmp_path / name} ")
        assert "\n" not in str(refused.value)


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", halves())
    read_picture(path, PictureLimits(max_bytes=path.stat().st_size, max_side=40, max_pixels=800))
    for limits in (PictureLimits(max_bytes=10), PictureLimits(max_side=39), PictureLimits(max_pixels=799)):
        with pytest.raises(MediaError, match=r"a\.png is (larger than 10 bytes|40x20; at most)"):
            read_picture(path, limits)


def test_crop_keeps_the_centre_and_the_aspect() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255
    cropped = crop_to(Image.fromarray(image), 64, 64)
    assert cropped.shape == (64, 64, 3)
    assert cropped.min() == 255
