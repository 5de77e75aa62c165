"""How a rank's end is told, without Ray."""

from __future__ import annotations

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


def test_out_of_memory_is_no_loss_that_another_group_would_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = outcome_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), monkeypatch)
    with pytest.raises(GenerationError, match=r"out of memory on cpu \(CUDA out of memory\. Tried .* smaller videos"):
        Told(memory).result()
    other = outcome_of(RuntimeError("NCCL"), monkeypatch)
    with pytest.raises(RankLost, match="rank 0 failed: RuntimeError: NCCL"):
        Told(other).result()
