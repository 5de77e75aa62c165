"""Which caption a window gets."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest

from cinesynth.data.footage.captions import (
    Captions,
    caption_files,
    caption_files_of,
    decode_text,
    read_captions,
    with_trigger,
)
from cinesynth.data.footage.sources import Source
from cinesynth.errors import MediaError


def test_the_most_specific_caption_wins(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    given = Source(str(video), "d", "from the list")
    assert read_captions(str(video)).at(0) == ""
    assert read_captions(str(video)).found(0, given) == ("from the list", "footage")
    assert read_captions(str(video)).found(0, Source(str(video), "d")) == ("", "")
    shots = [{"start_s": 1, "end_s": 2, "caption": "the second shot"}]
    video.with_suffix(".json").write_text(json.dumps({"caption": "from json"}))
    assert read_captions(str(video)).found(0, given) == ("from json", "json")
    video.with_suffix(".txt").write_text("from text,\n  over two lines\n")
    assert read_captions(str(video)).found(0, given) == ("from text, over two lines", "txt")
    video.with_suffix(".json").write_text(json.dumps({"shots": shots, "group": "g7"}))
    captions = read_captions(str(video))
    assert [captions.at(t) for t in (0.5, 1.0, 2.0)] == ["from text, over two lines", "the second shot", captions.whole]
    assert captions.found(1.0, given) == ("the second shot", "shot")
    assert captions.group == "g7"


def test_the_trigger_precedes_a_caption() -> None:
    assert with_trigger("a dog", " FILMLOOK, ") == "FILMLOOK, a dog"
    assert with_trigger("a dog", "") == "a dog"


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("video", "names", "chosen"),
    [
        ("clip.mp4", ["clip.txt", "clip.json", "other.txt"], ("clip.txt", "clip.json")),
        ("clip.mp4", ["clip.TXT"], ("clip.TXT",)),
        ("clip.mp4", ["clip.TXT", "clip.txt"], ("clip.txt",)),
        ("clip.mp4", ["clip.txt", "clip.mp4.txt", "clip.mp4.JSON"], ("clip.mp4.txt", "clip.mp4.JSON")),
        ("UPPER.MP4", ["UPPER.TXT", "upper.json"], ("UPPER.TXT",)),
        (f"{NFD}.mp4", [f"{NFC}.txt"], (f"{NFC}.txt",)),
        (f"{NFC}.mp4", [f"{NFD}.txt", f"{NFC}.txt"], (f"{NFC}.txt",)),
        ("clip", ["clip.txt", "clip.mp4.txt"], ("clip.txt",)),
        ("take.1.mov", ["take.1.txt", "take.txt"], ("take.1.txt",)),
        ("clip.mp4", ["clip.csv"], ()),
    ],
)
def test_the_caption_files_of_a_name(video: str, names: list[str], chosen: tuple[str, ...]) -> None:
    assert caption_files_of(video, caption_files(names)) == chosen


def test_a_file_without_a_suffix_has_no_caption_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "takes.v1").mkdir()
    (tmp_path / "takes.txt").write_text("about the folder")
    (tmp_path / "takes.v1" / "clip").touch()
    assert read_captions(str(tmp_path / "takes.v1" / "clip")) == Captions()


def test_an_empty_caption_file_says_nothing(tmp_path: Path) -> None:
    for content in ("\n", "\ufeff", ""):
        (tmp_path / "clip.txt").write_text(content)
        (tmp_path / "clip.json").write_text(content)
        assert read_captions(str(tmp_path / "clip.mp4")) == Captions()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_mark_says_the_encoding_and_is_no_text(encoding: str) -> None:
    assert decode_text("Köln".encode(encoding)) == "Köln"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Köln".encode("latin-1"), r"it is not UTF-8 \(byte 0xf6 at 1\); save it as UTF-8"),
        ("a dog".encode("utf-16-le"), "NUL characters, as UTF-16 without a byte-order mark does; save it as UTF-8"),
        (b"\xff\xfea", "it is not UTF-16-LE"),
    ],
)
def test_text_of_an_unknown_encoding_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_bytes(data)
    with pytest.raises(MediaError, match=rf"clip\.mp4: caption file clip\.txt cannot be used: .*{message}"):
        read_captions(str(tmp_path / "clip.mp4"))


WRONG = [
    ("{", "it is not JSON"),
    ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "it is not JSON: .*recursion"),
    (
        f'{{"shots": [{{"start_s": 0, "end_s": {"9" * 400}}}]}}',
        r"shots\.0\.end_s = 9{57}\.\.\. is not a number of seconds",
    ),
    ("[]", r"it holds \[\], not an object"),
    ('{"caption": 3}', "caption = 3 is not text"),
    ('{"shots": [{"caption": "no times"}]}', r"shots\.0\.start_s = null is not a number of seconds"),
    ('{"shots": [{"start_s": 2, "end_s": 1}]}', r"shots\.0: start_s = 2 is not before end_s = 1"),
    ('{"shots": 4}', "shots = 4 is not a list"),
    ('{"shots": ["a"]}', r"shots\.0 = \"a\" is not an object"),
    ('{"group": {"id": 1}}', r'group = {"id": 1} is not text'),
    ('{"caption": "\\ud800"}', "caption = .* is not text that UTF-8 can write"),
    ('{"caption": "a\\u0000b"}', "caption = .* holds a NUL character"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_json_file_is_named_with_key_and_value(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text(text)
    with pytest.raises(MediaError, match=rf"clip\.mp4: caption file clip\.json cannot be used: .*{message}"):
        read_captions(str(tmp_path / "clip.mp4"))


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_video_with_a_caption_keeps_it_beside_the_json_of_another_tool(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "clip.json").write_text(text)
    (tmp_path / "clip.txt").write_text("a kite")
    captions = read_captions(str(tmp_path / "clip.mp4"))
    assert (captions.whole, captions.whole_from) == ("a kite", "txt")
    ((name, what),) = captions.unused
    assert name == "clip.json"
    assert re.search(message, what)


def test_no_depth_of_a_json_file_ends_more_than_its_video(tmp_path: Path) -> None:
    """Whatever depth the parser of this Python still reads, its values may be too deep to be written."""
    for depth in range(100, 1000, 5):
        (tmp_path / "clip.json").write_text('{"caption": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(MediaError, match=r"clip\.mp4: caption file clip\.json cannot be used"):
            read_captions(str(tmp_path / "clip.mp4"))


def test_null_says_nothing_and_a_number_is_a_group(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text('{"caption": null, "group": 7, "shots": null, "camera": {"iso": 800}}')
    assert read_captions(str(tmp_path / "clip.mp4")) == Captions(group="7")
    (tmp_path / "clip.json").write_text('{"caption": "a kite", "group": [7]}')
    captions = read_captions(str(tmp_path / "clip.mp4"))
    assert (captions.whole, captions.group, captions.unused) == (
        "a kite",
        None,
        (("clip.json", "group = [7] is not text"),),
    )


def test_a_caption_without_an_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("x" * 10_000)
    assert len(read_captions(str(tmp_path / "clip.mp4")).whole) == 10_000
    (tmp_path / "clip.txt").write_text("x" * 10_001)
    with pytest.raises(MediaError, match="10,001 characters; at most 10,000"):
        read_captions(str(tmp_path / "clip.mp4"))
    (tmp_path / "clip.txt").write_text("x " * (1 << 20))
    with pytest.raises(MediaError, match="it is longer than 1,048,576 bytes"):
        read_captions(str(tmp_path / "clip.mp4"))


def test_what_names_a_finished_run_is_as_before() -> None:
    assert repr(Captions("a", (), "g", "txt", (("f", "x"),))) == "Captions(whole='a', shots=(), group='g')"


def test_the_captions_of_the_field_are_found() -> None:
    if "CINESYNTH_MEDIA" not in os.environ:
        pytest.skip("CINESYNTH_MEDIA names no folder with odd video files")
    folder = Path(os.environ["CINESYNTH_MEDIA"]) / "field"
    found = {path.name: read_captions(str(path)) for path in folder.glob("*caption*/*.[mM][pP]4")}
    assert len(found) == 5
    assert all(captions.whole and captions.whole[0] != "\ufeff" for captions in found.values())
    beside = {path.name: read_captions(str(path)) for path in (folder / "sidecar_json").glob("*.mp4")}
    assert beside["json_group_number.mp4"].group == "7"
    assert beside["json_null.mp4"].whole_from == "txt"
