"""Windows become pixels, whichever backend decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from cinesynth.data.encode.encode import read_window
from cinesynth.data.scan.decoder import Change, silent, unchanged
from cinesynth.data.scan.decoders import DECODERS
from cinesynth.data.scan.watch import Beat
from cinesynth.errors import MediaError
from cinesynth.pictures import Frames
from tests.data.clips import level, write_levels


class KnowsNoSuchCodec:
    """A backend that cannot decode what PyAV can, as decord no AV1."""

    module: ClassVar[str] = "av"

    def read(self, path: str, pts: Sequence[int], change: Change = unchanged, beat: Beat = silent) -> Frames:
        raise MediaError(f"{path} cannot be decoded by decord")


def test_what_a_backend_cannot_decode_is_decoded_by_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reject for it would stay, although another backend may be given later."""
    monkeypatch.setitem(DECODERS, "decord", KnowsNoSuchCodec)
    path, box = str(write_levels(tmp_path / "a.mkv", range(0, 400, 40))), (0.0, 0.0, 32.0, 32.0)
    frames, _ = read_window(silent, "decord", path, [80, 200], (32, 32), box)
    assert [level(frame) for frame in frames] == [2, 5]
    for backend in ("decord", "pyav"):
        with pytest.raises(MediaError, match="timestamp 81"):
            read_window(silent, backend, path, [81], (32, 32), box)
