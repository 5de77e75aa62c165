"""Progress lines: every ten seconds, at the end, and when errors are known after it."""

from __future__ import annotations

import logging

import pytest

from cinesynth.data import progress as module
from cinesynth.data.progress import Progress, show_plan
from cinesynth.telemetry import Telemetry


def test_lines_say_how_much_is_done_how_fast_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    gauges: dict[str, float] = {}

    def keep(self: Telemetry, name: str, value: float) -> None:
        assert self._labels == {"stage": "encode", "run": "clips"}
        gauges[name.removeprefix("cinesynth_prepare_")] = value

    monkeypatch.setattr(Telemetry, "set", keep)
    caplog.set_level(logging.INFO, "cinesynth.prepare")
    progress = Progress("encode", "clips", 40, "windows", done=10)
    for seconds, done in ((4, 5), (4, 5), (4, 4), (8, 16)):
        now[0] += seconds
        progress.add(done)
        if done == 4:
            rate = 14 / 12
            assert gauges == {
                "items": 40,
                "items_done": 24,
                "items_failed": 0,
                "items_per_second": pytest.approx(rate),
                "remaining_seconds": pytest.approx(16 / rate),
            }
    progress.add(0, errors=2)
    assert [record.getMessage() for record in caplog.records] == [
        "encode: 24/40 windows, 1.17 windows/s, ETA 14 s, 0 errors",
        "encode: 40/40 windows, 1.50 windows/s, 0 errors",
        "encode: 40/40 windows, 1.50 windows/s, 2 errors",
    ]


def test_rejects_are_shown_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(Telemetry, "set", lambda self, name, value, reason="": shown.__setitem__((name, reason), value))
    show_plan("clips", 3, ["unreadable", "short", "short"])
    assert shown == {
        ("cinesynth_prepare_windows", ""): 3,
        ("cinesynth_prepare_rejects", "unreadable"): 1,
        ("cinesynth_prepare_rejects", "short"): 2,
    }
