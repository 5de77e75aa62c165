from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinesynth.errors import MediaError
from cinesynth.pictures import PictureLimits
from serve import decode
from serve.config import ImageLimits
from serve.media import ImageRefused, data_url_bytes, frame_png, sniff, write_whole

LIMITS = ImageLimits(max_bytes=100_000, max_side=1000, max_pixels=500_000)
RED, GREEN = (250, 10, 10), (10, 250, 10)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half green."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def read_image(data: bytes, limits: ImageLimits, height: int = 20, width: int = 40) -> Image.Image:
    """The frame that is kept of an image."""
    return Image.open(io.BytesIO(frame_png(data, limits, height, width)))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, with hardly any data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("WEBP", {})]
)
def test_still_images_of_the_three_formats_are_read(kind: str, options: dict[str, Any]) -> None:
    data = encode(halves(), kind, **options)
    assert sniff(data) == kind
    image = read_image(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert np.abs(np.asarray(image).astype(int)[10, 5] - RED).max() < 12
    assert np.abs(np.asarray(image).astype(int)[10, 35] - GREEN).max() < 12


def test_exif_orientation_is_applied_and_all_metadata_is_gone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    exif[0x010E] = "where I live"
    png = frame_png(encode(halves(), "JPEG", exif=exif, quality=95), LIMITS, 40, 20)
    image = Image.open(io.BytesIO(png))
    assert np.abs(np.asarray(image).astype(int)[5, 10] - RED).max() < 12, "left became top"
    assert not image.getexif()
    assert not image.info
    write_whole(png, tmp_path / "inputs" / "a.png")
    assert b"where I live" not in (tmp_path / "inputs" / "a.png").read_bytes()
    assert [p.name for p in (tmp_path / "inputs").iterdir()] == ["a.png"]


def test_a_first_frame_outlives_a_power_cut_with_its_name(tmp_path: Path, synced: list[tuple[str, Path]]) -> None:
    write_whole(b"1", tmp_path / "a.png")
    assert [kind for kind, _ in synced] == ["file", "replace", "folder"]
    assert synced[1:] == [("replace", tmp_path / "a.png"), ("folder", tmp_path)]


def test_transparency_and_16_bits_become_rgb() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert np.asarray(read_image(encode(clear, "PNG"), LIMITS, 4, 4)).max() == 0
    grey = Image.fromarray(np.full((4, 4), 32896, np.uint16))  # half of 65535
    assert np.asarray(read_image(encode(grey, "PNG"), LIMITS, 4, 4)).tolist() == np.full((4, 4, 3), 128).tolist()
    palette = halves().quantize(4)
    assert np.asarray(read_image(encode(palette, "PNG"), LIMITS))[10, 35].tolist() == list(GREEN)


def animated(kind: str) -> bytes:
    return encode(halves(), kind, save_all=True, append_images=[Image.new("RGB", (40, 20), GREEN)], duration=50)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(halves(), "GIF"), "not a JPEG, PNG or WebP"),
        (encode(halves(), "BMP"), "not a JPEG, PNG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG, PNG or WebP"),
        (b"", "not a JPEG, PNG or WebP"),
        (animated("WEBP"), "animated"),
        (animated("PNG"), "animated"),
        (png_header(60_000, 60_000), "too many pixels"),
        (png_header(1001, 10), "1001x10"),
        (png_header(900, 900), "900x900"),
        (encode(Image.new("L", (1001, 2)), "JPEG"), "1001x2"),
        (encode(Image.new("L", (1001, 2)), "WEBP"), "1001x2"),
        (encode(Image.new("L", (2, 1001)), "WEBP", lossless=True), "2x1001"),
        (png_header(40, 20)[:-20], "damaged"),
        (encode(halves(), "PNG")[:60], "damaged"),
        (encode(halves(), "JPEG")[:-200], "damaged"),
        (encode(halves(), "WEBP")[:20], "damaged"),
        (b"\xff\xd8\xff" + b"\0" * 50, "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_bad_images_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRefused, match=reason) as refused:
        read_image(data, LIMITS)
    assert not refused.value.too_large


def test_a_webp_canvas_is_measured_before_the_decoder_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"VP8X" + struct.pack("<I", 10) + bytes([0, 0, 0, 0]) + b"\xfe\x3f\x00\xfe\x3f\x00"  # 16383 x 16383
    data = b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the decoder was reached"))
    with pytest.raises(MediaError, match="16383x16383"):
        decode.frame_png(lambda: None, data, "WEBP", PictureLimits(max_side=1000), 20, 40, 10**9)


def test_too_many_bytes_are_refused_as_such() -> None:
    with pytest.raises(ImageRefused) as refused:
        read_image(encode(halves(), "PNG") + b"\0" * 100_000, LIMITS)
    assert refused.value.too_large
    with pytest.raises(ImageRefused) as refused:
        data_url_bytes("data:image/png;base64," + "A" * 200_000, LIMITS)
    assert refused.value.too_large


def test_data_urls_are_decoded_and_links_refused() -> None:
    data = encode(halves(), "PNG")
    assert data_url_bytes("data:image/png;base64," + base64.b64encode(data).decode(), LIMITS) == data
    for url, reason in [
        ("https://example.com/a.png", "links are not fetched"),
        ("http://169.254.169.254/latest", "links are not fetched"),
        ("file:///etc/passwd", "links are not fetched"),
        ("data:image/png,plain", "not a base64 data URL"),
        ("data:image/png;base64,!!!", "not valid base64"),
    ]:
        with pytest.raises(ImageRefused, match=reason):
            data_url_bytes(url, LIMITS)


def test_decoding_ends_at_its_time_limit_and_goes_on_with_the_next_image() -> None:
    large = {"max_bytes": 1_000_000, "max_side": 8000, "max_pixels": 40_000_000}
    hasty = LIMITS.model_copy(update={"decode_s": 1e-5, **large})
    with pytest.raises(ImageRefused, match="within 1e-05 s"):  # a large one: this process may be held up, too
        read_image(encode(Image.new("RGB", (6000, 6000)), "PNG"), hasty)
    assert read_image(encode(halves(), "PNG"), LIMITS).size == (40, 20), "in a new child"


def test_decoding_ends_at_its_memory_limit() -> None:
    limits = ImageLimits(max_bytes=100_000, max_side=8000, max_pixels=40_000_000, decode_bytes=20_000_000)
    large = encode(Image.new("RGB", (6000, 6000)), "WEBP", method=0)
    assert len(large) < 100_000
    with pytest.raises(ImageRefused, match=r"20,000,000 bytes of memory|damaged"):
        read_image(large, limits)
    enough = limits.model_copy(update={"decode_bytes": 1_000_000_000})
    assert read_image(large, enough).size == (40, 20)
    assert read_image(encode(halves(), "PNG"), limits).size == (40, 20), "the child is still there"


def test_decoding_happens_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded in the server's own process"))
    assert frame_png(encode(halves(), "JPEG"), LIMITS, 20, 40).startswith(b"\x89PNG")


def jpeg_of_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan stands in it again and again."""
    data = encode(halves(), "JPEG", progressive=True)
    scans, end = data.count(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[data.rindex(b"\xff\xda") : end] * (number - scans) + data[end:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_image(jpeg_of_scans(decode.MAX_SCANS), LIMITS).size == (40, 20)
    with pytest.raises(ImageRefused, match="more than 64 scans"):
        read_image(jpeg_of_scans(decode.MAX_SCANS + 1), LIMITS)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the decoder was reached"))
    for data in (jpeg_of_scans(2000), b"\xff\xd8" + b"\xff\xfe\0\2" * 5000 + b"\xff\xd9"):
        with pytest.raises(MediaError, match="more than"):
            decode.frame_png(lambda: None, data, "JPEG", PictureLimits(), 20, 40, 10**9)


def test_scans_are_those_of_the_picture_itself() -> None:
    """Not what metadata hold, a preview or anything else, nor what follows the picture, as a film does on phones."""
    many = b"\xff\xda" * 1000
    data = encode(halves(), "JPEG", quality=95)
    metadata = b"\xff\xe2" + (len(many) + 2).to_bytes(2, "big") + many
    for whole in (data[:2] + metadata + data[2:], data + many, data[:2] + b"\xff" * 500 + data[2:]):
        decode.check_scans(whole)
        assert read_image(whole, LIMITS).size == (40, 20)
