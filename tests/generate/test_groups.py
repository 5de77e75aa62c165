"""Groups of a generation that take videos off one list."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cinesynth.config import GenerateConfig
from cinesynth.errors import RankLost
from cinesynth.generate import groups
from cinesynth.generate.shape import GroupShape
from cinesynth.settings import parse_config

CONFIG = parse_config(GenerateConfig, {"name": "shots", "storage": "s", "dataset": "d", "split": "test", "workers": 2})


class Placement:
    """Has room once it was asked so many times."""

    def __init__(self, asked: float) -> None:
        self.left = asked

    def wait(self, timeout_s: float) -> bool:
        time.sleep(0.01)
        self.left -= 1
        return self.left <= 0


class Group:
    usable = True
    loaded = ({"load_seconds": 1.0, "device": "cpu"},)

    def __init__(self, shape: GroupShape, placement: Placement) -> None:
        assert placement.left <= 0

    def close(self) -> None:
        self.usable = False


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> list[Placement]:
    """Placement groups of the generation, for a test to fill in."""
    there: list[Placement] = []

    @contextmanager
    def placements(config: GenerateConfig, shape: GroupShape) -> Iterator[list[Placement]]:
        yield there

    monkeypatch.setattr(groups, "placements", placements)
    monkeypatch.setattr(groups, "RankGroup", Group)
    return there


def test_a_generation_waits_for_room_and_ends_when_all_videos_are_made(rooms: list[Placement]) -> None:
    rooms += [Placement(40), Placement(math.inf)]  # the second one never gets its room
    made: list[dict[str, Any]] = []
    videos = {f"{i}.mp4": lambda group: {"seconds": {}} for i in range(3)}
    groups.make_videos(CONFIG, GroupShape("nano"), videos, made.append)
    assert [(row["group"], row["file"]) for row in made] == [(0, "0.mp4"), (0, "1.mp4"), (0, "2.mp4")]
    assert rooms[0].left <= 0


def test_an_error_ends_those_that_wait_for_room(rooms: list[Placement]) -> None:
    rooms += [Placement(1), Placement(math.inf)]

    def refused(group: Any) -> dict[str, Any]:
        raise ValueError("no such adapter")

    with pytest.raises(ValueError, match="no such adapter"):
        groups.make_videos(CONFIG, GroupShape("nano"), {"0.mp4": refused, "1.mp4": refused}, print)


def test_a_group_that_is_lost_with_its_node_waits_for_room_before_it_is_made_anew(rooms: list[Placement]) -> None:
    rooms.append(Placement(1))
    tries: list[Group] = []

    def lost_once(group: Any) -> dict[str, Any]:
        tries.append(group)
        if len(tries) == 1:
            group.close()
            rooms[0].left = 5
            raise RankLost("its node is gone")
        return {"seconds": {}}

    made: list[dict[str, Any]] = []
    groups.make_videos(CONFIG, GroupShape("nano"), {"0.mp4": lost_once}, made.append)
    assert [row["file"] for row in made] == ["0.mp4"]
    assert tries[0] is not tries[1]
