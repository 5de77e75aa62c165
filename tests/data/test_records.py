"""What the steps hand to each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from cinesynth.data.dataset import read_table, write_table
from cinesynth.data.plan.planning import settle_windows
from cinesynth.data.records import (
    Reject,
    caption_places,
    explain,
    left_out,
    read_plan,
    row_id,
    window_from_json,
    window_to_json,
    write_plan,
)
from cinesynth.storage import Storage
from tests.data.plan.test_assign import window
from tests.data.preparing import prepare_config


def test_a_plan_says_where_captions_come_from_and_older_ones_are_read_too(tmp_path: Path) -> None:
    dataset = Storage.open(tmp_path)
    assert caption_places(dataset) == {}
    windows = [replace(window("a"), caption="a dog", caption_from="txt"), replace(window("b"), caption="a video")]
    write_plan(dataset, "i", windows)
    assert [w.caption_from for w in read_plan(dataset, "i")] == ["txt", ""]
    assert caption_places(dataset) == {row_id("id-a", "a dog"): "txt"}
    older = read_table(dataset, "plan.parquet").drop_columns(["caption_from"])
    write_table(dataset, "plan.parquet", pa.table(older))
    assert [w.caption for w in read_plan(dataset, "i")] == ["a dog", "a video"]
    assert caption_places(dataset) == {}
    assert window_from_json(window_to_json(windows[0])) == windows[0]


def test_a_window_without_a_caption_has_the_default_one_and_says_so(tmp_path: Path) -> None:
    config = prepare_config(tmp_path, tmp_path, duplicates={"action": "keep"}, caption="a film", trigger="LOOK")
    found = [replace(window("a"), caption="a dog", caption_from="json"), window("b")]
    gone = replace(window("c"), caption="LOOK, a cat", caption_from="txt")
    windows, _ = settle_windows(config, {}, found, [gone], {"id-c": "LOOK, a cat"}, ())
    assert {w.window_id: (w.caption, w.caption_from) for w in windows} == {
        "id-a": ("LOOK, a dog", "json"),
        "id-b": ("LOOK, a film", "default"),
        "id-c": ("LOOK, a cat", "txt"),
    }


def test_rejects_are_explained_by_what_could_have_been_video() -> None:
    rejects = [
        Reject("/a.wav", "not_video", "it is sound"),
        Reject("/b.mp4", "unreadable", "it is empty"),
        Reject("/c.wav", "not_video", "it is sound"),
    ]
    assert explain(rejects) == "2 not_video, 1 unreadable; first: /b.mp4: it is empty"
    assert explain(rejects[:1]) == "1 not_video; first: /a.wav: it is sound"
    assert explain([]) == ""
    assert left_out(rejects)["not_video"] == "2 (the first: /a.wav: it is sound)"
