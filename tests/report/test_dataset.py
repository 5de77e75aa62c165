"""The dataset's page: timelines stay small, however long and many the films."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cinesynth.report.dataset import _BARS, _gaps, _timelines
from tests.data.plan.test_assign import window

SCORES = {"motion": 0.1, "blur": 0.2, "luma": 0.5, "clipped": 0.0, "static": 0.0}


def _source(number: int, shots: int) -> dict[str, Any]:
    info = {
        "width": 1920, "height": 1080, "fps": 24.0, "codec": "h264", "matrix": "bt709", "interlaced": False,
        "streams": 1, "rotation": 0, "bits": 10, "transfer": "pq", "range": "limited",
    }  # fmt: skip
    spans = [[float(i), i + 1.0] for i in range(shots)]
    return {
        "uri": f"/{number}.mov", "sha256": f"{number}", "seconds": float(shots), "info": json.dumps(info),
        "shots": spans, "damaged_s": 0.0,
    }  # fmt: skip


def test_few_shots_are_drawn_one_by_one_and_very_many_together() -> None:
    own = [
        replace(window(f"s{i}"), scores=SCORES, source_sha256="0", start_s=i + 0.2, end_s=i + 0.9, split="val")
        for i in (7, 3)
    ]
    (few,) = _timelines([_source(0, 10)], own)
    assert [(round(bar.left), round(bar.width)) for bar in few.shots] == [(10 * i, 10) for i in range(10)]
    assert [(bar.kind, bar.title) for bar in few.windows] == [("val", "3.20–3.90 s"), ("val", "7.20–7.90 s")]
    assert few.flags == ["10 bit", "PQ"]
    many = _timelines([_source(i, 3000) for i in range(40)], own)
    assert sum(len(t.shots) for t in many) <= _BARS
    assert many[0].shot_count == 3000
    assert many[0].shots[0].title.endswith("together")
    assert sum(bar.width for bar in many[0].shots) > 99.9


def test_scores_that_are_missing_are_told_of_the_dataset_and_of_each_source() -> None:
    narrow = {name: value for name, value in SCORES.items() if name != "motion"}
    own = [replace(window(f"s{i}"), scores=scores, source_sha256="0") for i, scores in enumerate((SCORES, narrow))]
    other = replace(window("t"), scores=narrow | {"text": 0.1}, source_sha256="1")
    assert _gaps([*own, other]) == ["motion in 2 windows of 2 sources", "text in 2 windows of 1 source"]
    first, second = _timelines([_source(0, 3), _source(1, 3)], [*own, other])
    assert first.flags[2:] == ["motion not measured in 1 window"]
    assert second.flags[2:] == ["motion not measured"]
    assert _gaps([own[0]]) == []


def test_transparency_and_mended_times_are_flagged() -> None:
    source = _source(0, 3)
    source["info"] = json.dumps(json.loads(source["info"]) | {"alpha": True, "times": "mended"})
    (timeline,) = _timelines([source], [])
    assert timeline.flags[2:] == ["transparent parts shown as opaque", "times mended"]
