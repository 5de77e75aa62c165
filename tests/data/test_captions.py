"""Which caption a window gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cinesynth.data.captions import read_captions
from cinesynth.errors import MediaError


def test_the_most_specific_caption_wins(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    assert read_captions(video, "of the source").at(0) == "of the source"
    shots = [{"start_s": 1, "end_s": 2, "caption": "the second shot"}]
    video.with_suffix(".json").write_text(json.dumps({"caption": "from json"}))
    assert read_captions(video, "of the source").at(0) == "from json"
    video.with_suffix(".txt").write_text("from text,\n  over two lines\n")
    assert read_captions(video, "of the source").at(0) == "from text, over two lines"
    video.with_suffix(".json").write_text(json.dumps({"shots": shots, "group": "g7"}))
    captions = read_captions(video, "of the source", trigger="FILMLOOK")
    assert captions.at(0.5) == "FILMLOOK, from text, over two lines"
    assert captions.at(1.0) == "FILMLOOK, the second shot"
    assert captions.at(2.0) == "FILMLOOK, from text, over two lines"
    assert captions.group == "g7"


def test_an_empty_sidecar_falls_through(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("\n")
    assert read_captions(tmp_path / "clip.mp4", "default").at(0) == "default"


@pytest.mark.parametrize("text", ["{", "[]", '{"caption": 3}', '{"shots": [{"caption": "no times"}]}', '{"shots": 4}'])
def test_a_damaged_sidecar_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text(text)
    with pytest.raises(MediaError, match=r"clip\.mp4"):
        read_captions(tmp_path / "clip.mp4", "default")


def test_a_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_bytes("Köln".encode("latin-1"))
    with pytest.raises(MediaError, match=r"clip\.mp4"):
        read_captions(tmp_path / "clip.mp4", "default")
