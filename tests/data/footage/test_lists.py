"""Lists: what a row says, and how what it cannot mean is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.lists import read_list
from cinesynth.data.footage.sources import Source
from cinesynth.errors import ConfigError


def _read(path: Path) -> list[Source]:
    return list(read_list(path, FootageSource(path=str(path))))


def _written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('path,caption\na.mp4,"a man\nb.mp4,a boat\n', r"row 1 \(line 2\): its quote is not closed"),
        ('path,caption\na.mp4,x\nb.mp4,"a man\nc.mp4,"a boat"\n', r"row 2 \(line 3\): ',' expected after '\"'"),
        ('path,caption\na.mp4,"a man\nb.mp4,"\n', r"row 1 \(line 2\): caption = .* holds another row; close its quote"),
        ("path;caption\na.mp4;x\n", "the header 'path;caption' has no comma"),
        ("path,caption,caption\na.mp4,x,y\n", "column 'caption' is there twice"),
        ("path,caption\na.mp4,x\nb.mp4,a dog, running\n", "row 2: 1 values more than columns"),
        (b"path,caption\na.mp4,K\xf6ln\n", "cannot be read as a list: it is not UTF-8"),
    ],
)
def test_csv_is_read_strictly(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"list\.csv.*{message}"):
        _read(_written(tmp_path / "list.csv", content))


def test_a_caption_of_csv_may_have_lines_and_commas(tmp_path: Path) -> None:
    path = _written(tmp_path / "list.csv", 'path,caption\r\na.mp4,"one,\r\ntwo, ""three"""\r\nb.mp4,\r\n')
    assert [(s.caption, s.row) for s in _read(path)] == [
        ('one,\r\ntwo, "three"', f"{path}, row 1"),
        (None, f"{path}, row 2"),
    ]


def test_a_record_of_jsonl_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    captions = ["first\u2028second", "third\u0085fourth", "fifth\x0bsixth"]
    rows = [json.dumps({"path": "a.mp4", "caption": text}, ensure_ascii=False) for text in captions]
    path = _written(tmp_path / "list.jsonl", "\r\n".join(rows) + "\n\n")
    assert [s.caption for s in _read(path)] == captions


def test_a_wrong_record_of_jsonl_is_named_by_its_line(tmp_path: Path) -> None:
    path = _written(tmp_path / "list.jsonl", '{"path": "a.mp4"}\n\n{"path": "b.mp4}\n')
    with pytest.raises(ConfigError, match=r"list\.jsonl, row 3: '{\"path\": \"b\.mp4}' is not one JSON object"):
        _read(path)


def test_a_wrong_value_of_parquet_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "in_s": [0.5, -1.0], "group": [1, 2]}), path)
    with pytest.raises(ConfigError, match=r"list\.parquet, row 2: in_s = -1\.0 is not a number of seconds"):
        _read(path)
    pq.write_table(pa.table({"path": ["a.mp4"], "group": [1]}), path)
    assert [s.group for s in _read(path)] == ["1"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (f'"in_s": {"9" * 400}', r"in_s = 9{57}\.\.\. is not a number of seconds"),
        (f'"caption": {"[" * 200_000}{"]" * 200_000}', "is not one JSON object: .*recursion"),
        (f'"caption": {"[" * 300}{"]" * 300}', "caption = .* is not text"),
    ],
)
def test_a_number_or_a_depth_that_python_cannot_hold_is_named_by_its_row(
    record: str, message: str, tmp_path: Path
) -> None:
    path = _written(tmp_path / "list.jsonl", f'{{"path": "a.mp4"}}\n{{"path": "b.mp4", {record}}}\n')
    with pytest.raises(ConfigError, match=rf"list\.jsonl, row 2: .*{message}"):
        _read(path)


def test_a_parquet_file_with_a_date_that_python_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["a.mp4"], "in_s": pa.array([2**31 - 1], pa.int32()).cast(pa.date32())}), path)
    with pytest.raises(ConfigError, match=r"list\.parquet cannot be read as a list: "):
        _read(path)


def test_the_lists_of_the_field() -> None:
    if "CINESYNTH_MEDIA" not in os.environ:
        pytest.skip("CINESYNTH_MEDIA names no folder with odd video files")
    folder = Path(os.environ["CINESYNTH_MEDIA"]) / "field" / "lists"
    with pytest.raises(ConfigError, match=r"unclosed\.csv, row 1 \(line 2\): its quote is not closed"):
        _read(folder / "unclosed.csv")
    with pytest.raises(ConfigError, match=r"bad\.jsonl, row 3: "):
        _read(folder / "bad.jsonl")
    assert len(_read(folder / "u2028.jsonl")) == 2
