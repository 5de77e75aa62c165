"""The decoders that `decode.backend` chooses from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from cinesynth.data.config import Backend
from cinesynth.data.scan.decoder import Decoder
from cinesynth.data.scan.decoder_others import DecordDecoder, TorchcodecDecoder
from cinesynth.data.scan.decoder_pyav import PyAVDecoder
from cinesynth.errors import ConfigError

DECODERS: dict[Backend, Callable[[], Decoder]] = {
    "pyav": PyAVDecoder,
    "decord": DecordDecoder,
    "torchcodec": TorchcodecDecoder,
}


def make_decoder(backend: Backend) -> Decoder:
    """The decoder of a backend. Raises ConfigError when its library cannot be used here."""
    if backend != "pyav" and importlib.util.find_spec(backend) is None:
        raise ConfigError(f"decode.backend: {backend} is not installed; pip install {backend}, or use pyav")
    return DECODERS[backend]()
