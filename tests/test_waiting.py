"""A job that waits for room in the cluster says so, and how much there is."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from cinesynth import session, waiting
from cinesynth.config import TrainConfig
from cinesynth.settings import parse_config
from cinesynth.waiting import AGAIN_S, FIRST_S, Waits, holders, in_words, pending, room
from tests.conftest import Head


def test_what_waits_is_told_after_a_while_and_again_much_later() -> None:
    waits = Waits()
    assert waits.look({"a": "2 x 1 CPU"}, 100.0) == []
    assert waits.look({"a": "2 x 1 CPU"}, 100.0 + FIRST_S - 1) == []
    assert waits.look({"a": "2 x 1 CPU"}, 100.0 + FIRST_S) == ["waiting for room for 20 s: 2 x 1 CPU"]
    assert waits.look({"a": "2 x 1 CPU"}, 100.0 + FIRST_S + 5) == []
    again = 100.0 + FIRST_S + AGAIN_S
    assert waits.look({"a": "2 x 1 CPU"}, again) == ["waiting for room for 620 s: 2 x 1 CPU"]


def test_what_got_its_place_begins_anew_when_it_waits_again() -> None:
    waits = Waits()
    waits.look({"a": "1 CPU"}, 0.0)
    waits.look({}, 10.0)
    assert waits.look({"a": "1 CPU"}, FIRST_S) == []
    assert waits.look({"a": "1 CPU"}, 2 * FIRST_S) == ["waiting for room for 20 s: 1 CPU"]
    waits.look({}, 3 * FIRST_S)
    waits.look({"b": "1 CPU"}, 4 * FIRST_S)
    assert waits.look({"b": "1 CPU"}, 5 * FIRST_S) == ["waiting for room for 20 s: 1 CPU"]


def test_equal_ones_are_one_line() -> None:
    waits = Waits()
    three = {"a": "1 GPU", "b": "1 GPU", "c": "8 CPU"}
    waits.look(three, 0.0)
    assert waits.look(three, 30.0) == ["waiting for room for 30 s: 2 times 1 GPU", "waiting for room for 30 s: 8 CPU"]


def test_needs_and_room_are_told_in_resources() -> None:
    worker = {"GPU": 1.0, "CPU": 8.0, "accelerator_type:A100-80G": 0.001}
    assert in_words([worker, worker, {"CPU": 1.0}]) == "2 x 8 CPU and 1 GPU, 1 CPU"
    assert room([[worker]], {"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}) == "4 of 16 CPU and 0 of 2 GPU"


@pytest.mark.timeout(120)
def test_a_cluster_says_what_of_a_job_has_no_place(ray_head: Head) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    class Waiting:
        pass

    taken = placement_group([{"CPU": 3}], name="theirs")
    ray.get(taken.ready(), timeout=60)
    waits = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_PACK")
    actor: Any = ray.remote(Waiting).options(num_cpus=3).remote()
    inside: Any = ray.remote(Waiting).options(num_cpus=1, placement_group=waits).remote()
    one: Any = ray.remote(Waiting).options(num_cpus=1).remote()
    try:
        found = pending()
        assert found[waits.id.hex()] == [{"CPU": 1.0}, {"CPU": 1.0}]
        assert found[actor._actor_id.hex()] == [{"CPU": 3.0}]
        assert inside._actor_id.hex() not in found, "it is told with its group"
        assert taken.id.hex() not in found
        of = f"of job {ray.get_runtime_context().get_job_id()}"
        ray.get(one.__ray_ready__.remote(), timeout=60)
        assert sorted(holders({"CPU"})) == [f"Waiting {of} (1 CPU)", f"theirs {of} (3 CPU)"]
        assert holders({"GPU"}) == []
    finally:
        for group in (waits, taken):
            remove_placement_group(group)
        for each in (actor, inside, one):
            ray.kill(each)
        deadline = time.monotonic() + 20
        while ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
            time.sleep(0.1)


def test_a_job_that_waits_says_so_in_its_log(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "connect", lambda *args, **kwargs: None)
    monkeypatch.setattr(waiting, "FIRST_S", 0.0)
    monkeypatch.setattr(waiting, "_GLANCE_S", 0.05)
    monkeypatch.setattr(waiting, "pending", lambda: {"a": [{"CPU": 2.0}, {"CPU": 2.0}]})
    monkeypatch.setattr(waiting, "holders", lambda names: [f"2 x somebody of run theirs (1 {', '.join(names)})"])
    given = {"name": "n", "storage": "s", "dataset": "d", "ray": {"address": ray_head.address}}
    with caplog.at_level(logging.INFO, "cinesynth.session"), session.ray_session(parse_config(TrainConfig, given)):
        deadline = time.monotonic() + 20
        while len(caplog.messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert caplog.messages == [
        "waiting for room for 0 s: 2 x 2 CPU; free are 4 of 4 CPU",
        "they are held by 2 x somebody of run theirs (1 CPU)",
    ]
