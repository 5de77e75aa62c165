"""A first frame that cannot be used, found before Ray starts."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cinesynth.errors import ConfigError


def check_image(path: str, key: str) -> None:
    """Decode an image once. Raises ConfigError, naming the field `key`, when it is missing, damaged or too large."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{key}: {path!r} does not exist; give a PNG, JPEG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large photograph; Pillow's error stays
            with Image.open(file) as image:
                image.load()
    except UnidentifiedImageError:
        raise ConfigError(f"{key}: {path!r} is not an image; give a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError as e:
        raise ConfigError(f"{key}: {path!r} has too many pixels: {e}") from e
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, EOFError, MemoryError) as e:
        raise ConfigError(f"{key}: {path!r} cannot be read as an image: {e}; write the file again") from e
