"""Which caption a window gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cinesynth.data.footage.captions import read_captions, with_trigger
from cinesynth.errors import MediaError


def test_the_most_specific_caption_wins(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    assert read_captions(str(video)).at(0) == ""
    shots = [{"start_s": 1, "end_s": 2, "caption": "the second shot"}]
    video.with_suffix(".json").write_text(json.dumps({"caption": "from json"}))
    assert read_captions(str(video)).at(0) == "from json"
    video.with_suffix(".txt").write_text("from text,\n  over two lines\n")
    assert read_captions(str(video)).at(0) == "from text, over two lines"
    video.with_suffix(".json").write_text(json.dumps({"shots": shots, "group": "g7"}))
    captions = read_captions(str(video))
    assert [captions.at(t) for t in (0.5, 1.0, 2.0)] == ["from text, over two lines", "the second shot", captions.whole]
    assert captions.group == "g7"


def test_the_trigger_precedes_a_caption() -> None:
    assert with_trigger("a dog", " FILMLOOK, ") == "FILMLOOK, a dog"
    assert with_trigger("a dog", "") == "a dog"


def test_an_empty_sidecar_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("\n")
    assert read_captions(str(tmp_path / "clip.mp4")).at(0) == ""


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"caption": 3}', '{"shots": [{"caption": "no times"}]}', '{"shots": 4}', '{"caption": "\\ud800"}'],
)
def test_a_damaged_sidecar_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text(text)
    with pytest.raises(MediaError, match=r"clip\.mp4"):
        read_captions(str(tmp_path / "clip.mp4"))


def test_a_caption_in_another_encoding_or_without_an_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_bytes("Köln".encode("latin-1"))
    with pytest.raises(MediaError, match=r"clip\.mp4"):
        read_captions(str(tmp_path / "clip.mp4"))
    (tmp_path / "clip.txt").write_text("x" * 10_000)
    assert len(read_captions(str(tmp_path / "clip.mp4")).whole) == 10_000
    (tmp_path / "clip.txt").write_text("x" * 10_001)
    with pytest.raises(MediaError, match="10,001 characters; at most 10,000"):
        read_captions(str(tmp_path / "clip.mp4"))
