"""Series of the table become Ray's metrics, with their labels; another use of one is a bug."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from ray.util import metrics

from cinesynth.telemetry import SERIES, Telemetry, _instrument
from cinesynth.wan.family import DEFAULT_FAMILY
from serve.records import Job
from serve.telemetry import JobTelemetry

Told = list[tuple[str, str, float, dict[str, str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What reaches Ray: kind, name, value and labels."""
    found: Told = []

    class Recorded:
        def __init__(self, name: str, description: str, *rest: Any) -> None:
            self.name, self.labels = name, rest[-1]
            assert description == SERIES[name].told

        def _tell(self, kind: str, value: float, labels: dict[str, str]) -> None:
            assert set(labels) == set(self.labels)
            found.append((kind, self.name, value, labels))

        def set(self, value: float, labels: dict[str, str]) -> None:
            self._tell("gauge", value, labels)

        def inc(self, value: float, labels: dict[str, str]) -> None:
            self._tell("counter", value, labels)

        def observe(self, value: float, labels: dict[str, str]) -> None:
            self._tell("histogram", value, labels)

    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(metrics, kind, Recorded)
    _instrument.cache_clear()
    yield found
    _instrument.cache_clear()


def test_labels_are_those_of_the_emitter_and_of_the_call(told: Told) -> None:
    telemetry = Telemetry(study="search")
    telemetry.set("cinesynth_tune_best", 0.25, objective="lpips")
    telemetry.set("cinesynth_tune_hypervolume", 2)
    assert told == [
        ("gauge", "cinesynth_tune_best", 0.25, {"study": "search", "objective": "lpips"}),
        ("gauge", "cinesynth_tune_hypervolume", 2.0, {"study": "search"}),
    ]


def test_a_counter_takes_no_zero_and_a_histogram_nothing_below_it(told: Told) -> None:
    telemetry = Telemetry()
    telemetry.add("cinesynth_serve_made_video_seconds_total", 0.0)
    telemetry.add("cinesynth_serve_made_video_seconds_total", 1.5)
    telemetry.observe("cinesynth_serve_queue_wait_seconds", -0.1)
    assert told == [
        ("counter", "cinesynth_serve_made_video_seconds_total", 1.5, {}),
        ("histogram", "cinesynth_serve_queue_wait_seconds", 0.0, {}),
    ]


def test_the_playing_time_of_a_served_video_follows_its_rate(told: Told) -> None:
    unset = dict.fromkeys((field.name for field in fields(Job)), None)
    for request in ({"num_frames": 25, "fps": 24}, {"num_frames": 25}):
        JobTelemetry().completed(Job(**unset | {"request": request, "seconds": 3.0}))  # type: ignore[arg-type]
    played = [value for _, name, value, _ in told if name == "cinesynth_serve_made_video_seconds_total"]
    assert played == [1.0, 24 / DEFAULT_FAMILY.fps]


def test_a_series_is_used_as_what_it_is() -> None:
    with pytest.raises(AssertionError, match="is a counter"):
        Telemetry().set("cinesynth_serve_leases_lost_total", 1)
    with pytest.raises(KeyError):
        Telemetry().set("cinesynth_train_lr", 1)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("cinesynth_train_last_step_timestamp_seconds", "timestamp"),
        ("cinesynth_serve_made_video_seconds_total", "seconds"),
        ("cinesynth_train_samples_per_second", ""),
        ("cinesynth_train_mfu_ratio", "ratio"),
        ("cinesynth_train_peak_memory_bytes", "bytes"),
    ],
)
def test_a_unit_is_the_end_of_a_name(name: str, unit: str) -> None:
    assert SERIES[name].unit == unit
