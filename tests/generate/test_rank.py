"""How a rank's end is told, without Ray."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from cinesynth.config import SamplerSettings
from cinesynth.errors import GenerationError, RankLost
from cinesynth.generate.group import RankGroup
from cinesynth.generate.messages import Outcome, Status, VideoRequest
from cinesynth.generate.rank import Rank
from cinesynth.generate.shape import GroupShape

REQUEST = VideoRequest(storage=("", "", ""), output=("", "", ""), file="a.mp4", sampler=SamplerSettings())


def outcome_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    def fails(request: VideoRequest) -> dict[str, Any]:
        raise error

    rank = Rank(GroupShape("nano"), 0)
    monkeypatch.setattr(rank, "_make", fails)
    rank._run(REQUEST)
    found = rank.outcome()
    assert found is not None
    return found


class Told(RankGroup):
    """A group whose only rank ended so."""

    def __init__(self, outcome: Outcome) -> None:
        self._ranks = [_Actor()]
        self.outcome = outcome

    def progress(self) -> Status:
        return Status()

    def _call(self, refs: list[Any]) -> list[Any]:
        return [self.outcome]

    def _end(self, number: int, reason: str) -> RankLost:
        return RankLost(f"rank {number} failed: {reason}")


class _Actor:
    class outcome:
        remote = staticmethod(lambda wait_s: None)


class _Lingering(threading.Event):
    """Set some time before the thread that sets it ends."""

    def set(self) -> None:
        super().set()
        time.sleep(0.2)


def test_the_next_video_begins_though_the_thread_of_the_last_one_is_still_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = Rank(GroupShape("nano"), 0)
    goes_on = threading.Event()
    monkeypatch.setattr(rank, "_make", lambda request: {"waited": goes_on.wait(10)})
    rank._ended = _Lingering()
    for _ in range(2):
        goes_on.clear()
        rank.start(REQUEST)
        with pytest.raises(RuntimeError, match="a video is being made"):
            rank.start(REQUEST)
        goes_on.set()
        assert rank.outcome(10) == Outcome("made", made={"waited": True})


def test_out_of_memory_is_no_loss_that_another_group_would_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = outcome_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), monkeypatch)
    with pytest.raises(GenerationError, match=r"out of memory on cpu \(CUDA out of memory\. Tried .* smaller videos"):
        Told(memory).result()
    other = outcome_of(RuntimeError("NCCL"), monkeypatch)
    with pytest.raises(RankLost, match="rank 0 failed: RuntimeError: NCCL"):
        Told(other).result()
