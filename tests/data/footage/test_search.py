"""Every file of a folder is a source, holds the caption of one, is a reject, or is hidden."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cinesynth.data.config import FootageSource
from cinesynth.data.footage import files as files_module
from cinesynth.data.footage.captions import split_location
from cinesynth.data.footage.inputs import check_footage
from cinesynth.data.footage.search import find_sources
from cinesynth.data.footage.sources import Source, below, content_sha256
from cinesynth.data.records import Reject
from cinesynth.errors import ConfigError
from cinesynth.storage import Storage

VIDEO = ["a.mp4", "B.MTS", "c.m2ts", "d.mxf", "E.VOB", "f.wmv", "g.flv", "h.3gp", "i.mpeg", "j.gif", "k.y4m", "l.dv"]
UNCLEAR = ["no suffix", "take.r3d", "day 1/reel.dat"]
CAPTIONS = ["a.txt", "B.TXT", "c.m2ts.json", "day 1/x.mov.txt", "no suffix.txt"]
UNUSED = ["README.txt", "c.json", "A.TXT", "day 1/reel.info.json"]
OTHER = ["still.png", "seq.0001.exr", "layers.psd", "sound.wav", "clip.srt", "edit.prproj", "notes.md", "list.csv"]
HIDDEN = [".hidden.mp4", ".git/objects/pack", "day 1/._a.mp4"]


def _write(root: Path, *groups: list[str]) -> Path:
    for name in (name for names in groups for name in names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path / "footage", VIDEO, ["day 1/x.mov"], UNCLEAR, CAPTIONS, UNUSED, OTHER, HIDDEN)


def _find(*footage: FootageSource | Path | str, besides: list[str] | None = None) -> tuple[list[Source], list[Reject]]:
    given = [f if isinstance(f, FootageSource) else FootageSource(path=str(f)) for f in footage]
    return find_sources(given, besides or [])


def _named(root: Path | str, locations: Any) -> list[str]:
    return sorted(location.removeprefix(f"{root}/") for location in locations)


def _captions_of(sources: list[Source]) -> list[str]:
    return [below(split_location(s.uri)[0], name) for s in sources for name in s.caption_files or ()]


def test_every_file_of_a_folder_is_accounted_for(folder: Path) -> None:
    sources, rejects = _find(folder)
    reasons = {
        reason: _named(folder, (r.source for r in rejects if r.reason == reason)) for reason in _reasons(rejects)
    }
    assert _named(folder, (s.uri for s in sources)) == sorted([*VIDEO, "day 1/x.mov", *UNCLEAR])
    assert _named(folder, _captions_of(sources)) == sorted(CAPTIONS)
    assert reasons == {"unused": sorted(UNUSED), "not_video": sorted(OTHER)}
    accounted = [*(s.uri for s in sources), *(r.source for r in rejects), *_captions_of(sources)]
    everything = [str(path) for path in folder.rglob("*") if path.is_file()]
    assert sorted([*accounted, *(str(folder / name) for name in HIDDEN)]) == sorted(everything)
    detail = {Path(r.source).name: r.detail for r in rejects}
    assert detail["layers.psd"] == "it is a picture, as its name says (.psd)"
    assert detail["list.csv"] == "a list in a folder is not read; name it in `footage`"


def _reasons(rejects: list[Reject]) -> set[str]:
    return {r.reason for r in rejects}


def test_a_prefix_of_a_bucket_is_read_as_a_folder_is(folder: Path, s3: str) -> None:
    prefix = Storage.below(s3, "day")
    Storage.open(prefix).upload_folder(folder)
    local, remote = _find(folder), _find(prefix)
    root = Storage.open(prefix).uri
    assert _named(root, (s.uri for s in remote[0])) == _named(folder, (s.uri for s in local[0]))
    assert _named(root, _captions_of(remote[0])) == _named(folder, _captions_of(local[0]))
    assert _named(root, (r.source for r in remote[1])) == _named(folder, (r.source for r in local[1]))
    one = _find(Storage.below(prefix, "B.MTS"))[0]
    assert [(s.uri, s.caption_files) for s in one] == [(f"{root}/B.MTS", ("B.TXT",))]
    written = _find(prefix, besides=[f"{root}/day 1"])[0]
    assert _named(root, (s.uri for s in written)) == sorted([*VIDEO, *UNCLEAR[:2]])


def test_objects_of_a_bucket_may_have_any_name(s3: str) -> None:
    names = ["Take 7 [a].mov", "100%20.mp4", "Größe.mp4", "what?.mp4", "a+b#c&d=e.mp4"]
    bucket = Storage.open(s3).child("odd names")
    for name in names:
        bucket.write_text(name, name)
    prefix = Storage.below(s3, "odd names")
    found, rejects = _find(prefix)
    assert not rejects
    assert [source.uri for source in found] == [f"s3://clips/studio/odd names/{name}" for name in sorted(names)]
    for source, name in zip(found, sorted(names), strict=True):
        assert content_sha256(source.location) == hashlib.sha256(name.encode()).hexdigest()


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    root = _write(tmp_path / "root", ["a/1.mp4"])
    outside = _write(tmp_path / "outside", ["2.mp4", "deeper/3.mp4"])
    (root / "0 first").symlink_to(root / "a")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(outside)
    (outside / "back").symlink_to(root / "a")
    sources, rejects = _find(root)
    assert _named(root, (s.uri for s in sources)) == ["a/1.mp4", "out/2.mp4", "out/deeper/3.mp4"]
    assert {(_named(root, [r.source])[0], r.reason) for r in rejects} == {
        (name, "duplicate") for name in ("0 first", "loop", "out/back")
    }


def test_what_jobs_have_written_is_no_footage(tmp_path: Path) -> None:
    _write(tmp_path, ["a.mp4", "datasets/clips/pixels/x.mkv", "sub/runs/y.mp4"])
    sources, rejects = _find(tmp_path, besides=[str(tmp_path / name) for name in ("datasets", "runs")])
    assert _named(tmp_path, (s.uri for s in sources)) == ["a.mp4", "sub/runs/y.mp4"]
    assert not rejects


def test_a_glob_takes_in_no_more_of_what_jobs_wrote_than_its_folder_does(tmp_path: Path) -> None:
    names = ["a.mp4", "sub/b.mp4", "datasets/clips/pixels/x.mkv", "serve/results/y.mp4", "runs/r/videos/real/z.mp4"]
    _write(tmp_path, names)
    (tmp_path / "link").symlink_to(tmp_path / "serve")
    written = [str(tmp_path / name) for name in ("datasets", "runs", "registry", "serve")]
    both = ["a.mp4", "sub/b.mp4"]
    expected = {"": both, "*": both, "**": both, "**/*": both, "**/*.mp4": both, "*/**/*": both[1:], "*/*/*": []}
    for pattern, footage in expected.items():
        sources, rejects = _find(tmp_path / pattern, besides=written)
        assert _named(tmp_path, (s.uri for s in sources)) == footage, pattern
        assert not rejects
    # What a path or the beginning of a glob names is taken in, as a folder is.
    for pattern in ("runs", "runs/*", "runs/r/videos/*/*.mp4", "runs/**/*", "runs/r/videos"):
        sources, _ = _find(tmp_path / pattern, besides=written)
        assert _named(tmp_path, (s.uri for s in sources)) == names[-1:], pattern


def test_a_row_of_a_list_is_used_or_rejected(tmp_path: Path) -> None:
    _write(tmp_path, ["clips/a.mp4", "clips/b.mp4", "clips/c.mp4"])
    (tmp_path / "list.csv").write_text(
        "path,caption,out_s\nclips/a.mp4,first,\nclips/../clips/a.mp4,second,\nclips/b.mp4,,\nclips/a.mp4,a part,2\n"
    )
    listed = FootageSource(path=str(tmp_path / "list.csv"))
    whole = FootageSource(path=str(tmp_path / "clips"), domain="film", caption="of the folder")
    for footage in ([listed, whole], [whole, listed]):
        sources, rejects = _find(*footage)
        assert {(Path(s.uri).name, s.out_s < 9, s.caption, s.domain) for s in sources} == {
            ("a.mp4", False, "first", "film"),
            ("a.mp4", True, "a part", "film"),
            ("b.mp4", False, "of the folder", "film"),
            ("c.mp4", False, "of the folder", "film"),
        }
        assert [(r.reason, r.detail) for r in rejects] == [
            ("duplicate", f"{tmp_path}/list.csv, row 2 names the same part as {tmp_path}/list.csv, row 1")
        ]


def test_a_file_that_is_named_twice_with_other_words_is_told(tmp_path: Path) -> None:
    _write(tmp_path, ["dogs/a.mp4", "b.mp4"])
    sources, rejects = _find(tmp_path, FootageSource(path=str(tmp_path / "dogs"), domain="dogs"), tmp_path / "b.mp4")
    assert [s.domain for s in sources] == ["default"] * 2
    assert [(Path(r.source).name, r.reason) for r in rejects] == [("a.mp4", "duplicate")]
    assert "another domain or caption" in rejects[0].detail


def test_captions_are_found_beside_files_that_are_named_alone_listed_or_matched(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"path": "B.MTS"}))
    for path in (folder / "B.MTS", folder / "*.MTS", folder / "rows.jsonl"):
        sources, rejects = _find(path)
        assert [s.caption_files for s in sources] == [("B.TXT",)]
        assert not rejects


def test_a_folder_of_a_bucket_is_listed_once_for_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def listed(storage: Storage, folder: str = "", recursive: bool = False) -> list[str]:
        asked.append(storage.uri)
        if storage.uri.endswith("closed"):
            raise OSError("AWS Error ACCESS_DENIED")
        return ["0.mp4", "0.txt", "1.mp4", "2.mp4.json"]

    monkeypatch.setattr(Storage, "list", listed)
    names = [*(f"open/{i}.mp4" for i in range(3)), "closed/x.mp4"]
    rows = [{"path": f"s3://key:secret@bucket/{name}?region=eu-central-1"} for name in names]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sources, rejects = _find(tmp_path / "list.jsonl")
    assert sorted(asked) == ["s3://bucket/closed", "s3://bucket/open"]
    assert [s.caption_files for s in sources] == [("0.txt",), (), ("2.mp4.json",)]
    assert [(r.source, r.reason) for r in rejects] == [("s3://bucket/closed/x.mp4", "unreadable")]
    assert "captions beside s3://bucket/closed/x.mp4 cannot be looked for: AWS Error" in rejects[0].detail


def test_what_a_glob_matches_is_accounted_for(folder: Path) -> None:
    sources, rejects = _find(folder / "*")
    assert [s.uri for s in sources] == [s.uri for s in _find(folder)[0]]
    assert _reasons(rejects) == {"unused", "not_video"}


def _read(path: Path, named: str = "") -> dict[str, Any]:
    return files_module._read({"location": str(path), "known": "null", "caption_files": "[]", "named": named})


def test_what_is_no_video_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(location: str) -> str:
        raise AssertionError(f"{location} is read whole")

    monkeypatch.setattr(files_module, "content_sha256", read)
    (tmp_path / "huge").write_bytes(os.urandom(100_000))
    row = _read(tmp_path / "huge")
    assert (row["reason"], row["sha256"]) == ("not_video", "")
    assert "huge holds no moving pictures" in row["error"]


@pytest.mark.parametrize("list_first", [False, True])
def test_of_a_file_of_which_a_list_names_parts_nothing_else_is_used(list_first: bool, tmp_path: Path) -> None:
    folder = _write(tmp_path / "film", ["a.mp4", "b.mp4"])
    listed = tmp_path / "list.csv"
    listed.write_text("path,in_s,out_s,group\nfilm/a.mp4,5,10,scene\nfilm/a.mp4,20,30,other\n")
    footage = [FootageSource(path=str(folder), domain="film", caption="a film"), FootageSource(path=str(listed))]
    found, rejects = find_sources(footage[::-1] if list_first else footage)
    assert [(Path(s.location).name, s.in_s, s.out_s, s.group, s.domain, s.caption) for s in found] == [
        ("a.mp4", 5.0, 10.0, "scene", "film", "a film"),
        ("a.mp4", 20.0, 30.0, "other", "film", "a film"),
        ("b.mp4", 0.0, math.inf, None, "film", "a film"),
    ]
    assert rejects == []


def test_a_row_that_names_no_file_is_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, what in (
        ("pipe.mp4", "is not a regular file"),
        ("gone.mp4", "does not exist"),
        (".", "is not a regular"),
    ):
        row = _read(tmp_path / name, "video")
        assert row["reason"] == "unreadable"
        assert what in row["error"]


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        (
            ["a.png", "b.PNG", "c.wav"],
            "",
            r"footage\.0\.path: .* holds no video, but 3 other files \(2 \.png, 1 \.wav\)",
        ),
        (["notes"], "", r"holds no video, but 1 other files \(1 without a suffix\)"),
        ([], "", "holds no video: it is empty"),
        (["a.png"], "*.png", "matches no video, but 1 other files"),
        (
            ["list.json"],
            "list.json",
            r"list\.json' holds no video that FFmpeg knows, and is no list: lists are \.csv, ",
        ),
    ],
)
def test_footage_without_video_is_refused_with_what_is_there(
    names: list[str], path: str, message: str, tmp_path: Path
) -> None:
    _write(tmp_path, names)
    with pytest.raises(ConfigError, match=message):
        check_footage([FootageSource(path=str(tmp_path / path))])


def test_the_formats_of_the_field_are_found(tmp_path: Path) -> None:
    if "CINESYNTH_MEDIA" not in os.environ:
        pytest.skip("CINESYNTH_MEDIA names no folder with odd video files")
    folder = Path(os.environ["CINESYNTH_MEDIA"]) / "field"
    check_footage([FootageSource(path=str(folder / "suffixes"))])
    sources, rejects = _find(folder / "suffixes")
    assert [Path(s.uri).suffix for s in sources] == [".MTS", ".gif", ".3gp", ".flv"]
    assert not rejects
    sources, rejects = _find(folder / "caption_names")
    assert len([s for s in sources if s.caption_files]) == len(sources) == 3
    assert not rejects


def test_a_source_is_recorded_as_before() -> None:
    """The identity of finished runs is made of it."""
    source = replace(Source("/a.mp4", "d", caption_files=("a.txt",)), row="list.csv, row 1")
    assert repr(source) == ("Source(location='/a.mp4', domain='d', caption=None, group=None, in_s=0.0, out_s=inf)")
