"""Which files of a folder are compared, what is refused before any network runs, and what a reader is warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cinesynth.data.video import write_video
from cinesynth.errors import ConfigError, DatasetError, MediaError
from cinesynth.metrics.videos import (
    Bucket,
    VideoSet,
    check_lengths,
    list_videos,
    notes,
    open_sets,
    parse_groups,
    passed_over,
    read_groups,
)

SHORT, LONG, TALL = Bucket(96, 64, 17), Bucket(96, 64, 33), Bucket(64, 96, 17)


def video_set(name: str, *buckets: Bucket, ids: str = "abcdefgh") -> VideoSet:
    keys = ids[: len(buckets)]
    files = {key: Path(f"{name}/{key}.mkv") for key in keys}
    return VideoSet(name, files, dict(zip(keys, buckets, strict=True)), frozenset({16.0}), frozenset({"ffv1"}), {})


def grey(path: Path, frames: int = 3, height: int = 32, width: int = 48) -> Path:
    return write_video(path, np.full((frames, height, width, 3), 90, np.uint8), 16, "ffv1")


def test_what_is_no_video_is_passed_over_and_counted(tmp_path: Path) -> None:
    grey(tmp_path / "a.mkv")
    grey(tmp_path / "take 2" / "B.MKV")
    grey(tmp_path / ".trash" / "old.mkv")
    for name in ("poster.png", "sound.wav", "take 2/notes.txt", ".hidden.png", "groups"):
        (tmp_path / name).write_text("x")
    (tmp_path / "linked").symlink_to(tmp_path / "take 2")
    assert list(list_videos("real", tmp_path)) == ["a", "take 2/B"]
    counts = {".png": 1, ".txt": 1, ".wav": 1, "linked folder": 1, "without a suffix": 1}
    assert passed_over(tmp_path) == counts
    real = replace(video_set("real", SHORT), passed_over=counts)
    assert notes([real, video_set("base", SHORT)], pairs=True) == [
        "real: passed over 1 .png, 1 .txt, 1 .wav, 1 linked folder, 1 without a suffix"
    ]


def test_folders_named_like_videos_and_broken_links_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "frames.mp4").mkdir()
    with pytest.raises(MediaError, match=r"real: .*frames\.mp4 is a folder that is named like a video"):
        list_videos("real", tmp_path)
    (tmp_path / "frames.mp4").rmdir()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(MediaError, match=r"real: .*gone\.mp4 is a link to nothing"):
        list_videos("real", tmp_path)


def test_an_open_set_knows_each_video_without_keeping_it(tmp_path: Path) -> None:
    grey(tmp_path / "real" / "a.mkv", frames=4)
    grey(tmp_path / "base" / "a.mkv", frames=5)
    real, base = open_sets({name: tmp_path / name for name in ("real", "base")}, frames=3)
    assert real.buckets == base.buckets == {"a": Bucket(48, 32, 3)}
    assert (real.fps, real.codecs, real.num_frames) == ({16.0}, {"ffv1"}, 3)
    with pytest.raises(DatasetError, match=r"base.a\.mkv has 5 frames, .*real.a\.mkv has 4; .*frames=4"):
        open_sets({name: tmp_path / name for name in ("real", "base")}, frames=None)
    with pytest.raises(MediaError, match=r"real.a\.mkv has 4 frames, fewer than frames=5"):
        open_sets({name: tmp_path / name for name in ("real", "base")}, frames=5)


def test_several_lengths_compare_where_both_sets_have_them() -> None:
    real = video_set("real", SHORT, LONG)
    check_lengths(real, video_set("base", SHORT, LONG))
    check_lengths(real, video_set("base", LONG, SHORT, SHORT, ids="xyz"))
    with pytest.raises(DatasetError, match=r"base/a\.mkv has 33 frames, real/a\.mkv has 17"):
        check_lengths(real, video_set("base", LONG, LONG))
    with pytest.raises(DatasetError, match=r"real/b\.mkv has 33 frames, base/x\.mkv has 17; .*frames=17"):
        check_lengths(real, video_set("base", SHORT, ids="x"))


def test_buckets_that_are_pooled_and_names_without_a_pair_are_told() -> None:
    real = video_set("real", SHORT, TALL, SHORT)
    same, other = video_set("base", SHORT, TALL, SHORT), video_set("adapter", SHORT, SHORT)
    pooled, share, alone = notes([real, same, other], pairs=True)
    assert pooled == "real holds videos of 1 64x96x17, 2 96x64x17: metrics of sets pool them"
    assert share.startswith("adapter holds 2 96x64x17, real 1 64x96x17, 2 96x64x17: ")
    assert alone.endswith("names without a pair: 0 of adapter, 1 of real")
    assert len(notes([real, same, other], pairs=False)) == 2
    assert notes([video_set("real", SHORT), video_set("base", SHORT)], pairs=True) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("video,group\nw0,a\nw1\n", "line 3 has no group"),
        ("video,group\nw0,a\n,b\n", "line 3 has no video"),
        ("video,group,caption\nw0,a,a dog, running\n", "line 2 has more values"),
        ('video,group\n"w0,a\nw1,b\n', "line 2 begins a row that is not CSV"),
        ("name,group\nw0,a\n", "columns video, group; it has name, group"),
        ("", "it has none"),
        ("video,group\nw0,a\nw0.mkv,b\n", "'a' and 'b'"),
        ("video,group\nw0,Küche\n".encode("latin-1"), r"is not UTF-8 text \(byte 16\)"),
        ("video,group\nw0,a\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_bad_group_files_are_refused_by_line(data: str | bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(ConfigError, match=reason) as refused:
        parse_groups(read_groups(str(path)), str(path))
    assert str(refused.value).startswith(f"groups: {path} ")
    assert "\n" not in str(refused.value)


def test_a_groups_file_may_begin_with_a_mark_and_hold_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes("\ufeffvideo,group\r\nw0.MTS,a\r\n\r\nw1.final,b,\r\n".encode())
    assert parse_groups(read_groups(str(path)), str(path)) == {"w0": "a", "w1.final": "b"}
