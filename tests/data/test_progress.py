"""Progress lines: every ten seconds, at the end, and when errors are known after it."""

from __future__ import annotations

import logging

import pytest

from cinesynth.data import progress as module
from cinesynth.data.progress import Progress


def test_lines_say_how_much_is_done_how_fast_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    gauges: dict[str, float] = {}

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, tag_keys

        def set_default_tags(self, tags: dict[str, str]) -> None:
            assert tags == {"stage": "encode", "run": "clips"}
            assert {*tags} == {*self.tag_keys}

        def set(self, value: float) -> None:
            gauges[self.name.removeprefix("cinesynth_prepare_")] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", Recorded)
    caplog.set_level(logging.INFO, "cinesynth.prepare")
    progress = Progress("encode", "clips", 40, "windows", done=10)
    for seconds, done in ((4, 5), (4, 5), (4, 4), (8, 16)):
        now[0] += seconds
        progress.add(done)
        if done == 4:
            rate = 14 / 12
            assert gauges == {
                "total": 40, "done": 24, "errors": 0, "per_s": pytest.approx(rate), "eta_s": pytest.approx(16 / rate)
            }  # fmt: skip
    progress.add(0, errors=2)
    assert [record.getMessage() for record in caplog.records] == [
        "encode: 24/40 windows, 1.17 windows/s, ETA 14 s, 0 errors",
        "encode: 40/40 windows, 1.50 windows/s, 0 errors",
        "encode: 40/40 windows, 1.50 windows/s, 2 errors",
    ]
