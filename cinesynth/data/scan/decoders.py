"""The decoders that `decode.backend` chooses from."""

from __future__ import annotations

import importlib.util

from cinesynth.data.config import Backend
from cinesynth.data.scan.decoder import Decoder
from cinesynth.data.scan.decoder_others import DecordDecoder, TorchcodecDecoder
from cinesynth.data.scan.decoder_pyav import PyAVDecoder
from cinesynth.errors import ConfigError

DECODERS: dict[Backend, type[Decoder]] = {
    "pyav": PyAVDecoder,
    "decord": DecordDecoder,
    "torchcodec": TorchcodecDecoder,
}


def make_decoder(backend: Backend) -> Decoder:
    """The decoder of a backend. Raises ConfigError when its library cannot be used here."""
    decoder = DECODERS[backend]
    if importlib.util.find_spec(decoder.module) is None:
        raise ConfigError(f"decode.backend: {decoder.module} is not installed; pip install {backend}, or use pyav")
    return decoder()
