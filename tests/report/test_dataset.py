"""The dataset's page: timelines stay small, however long and many the films."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cinesynth.report.dataset import _BARS, _timelines
from tests.data.plan.test_assign import window


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
    own = [replace(window(f"s{i}"), source_sha256="0", start_s=i + 0.2, end_s=i + 0.9, split="val") for i in (7, 3)]
    (few,) = _timelines([_source(0, 10)], own)
    assert [(round(bar.left), round(bar.width)) for bar in few.shots] == [(10 * i, 10) for i in range(10)]
    assert [(bar.kind, bar.title) for bar in few.windows] == [("val", "3.20–3.90 s"), ("val", "7.20–7.90 s")]
    assert few.flags == ["10 bit", "PQ"]
    many = _timelines([_source(i, 3000) for i in range(40)], own)
    assert sum(len(t.shots) for t in many) <= _BARS
    assert many[0].shot_count == 3000
    assert many[0].shots[0].title.endswith("together")
    assert sum(bar.width for bar in many[0].shots) > 99.9
