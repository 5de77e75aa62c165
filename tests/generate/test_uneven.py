"""A rank that is refused alone: the others wait for it, and may not have said yet how far they are."""

from __future__ import annotations

import pytest

from cinesynth.errors import RankLost
from cinesynth.generate.group import RankGroup
from cinesynth.generate.messages import Outcome, Status
from cinesynth.generate.shape import GroupShape


def test_the_group_is_given_up_once_the_others_are_known_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    group = RankGroup.__new__(RankGroup)
    group.shape, group._last = GroupShape("nano", ranks=2, cpus=1, answer_s=5.0), {0: Status()}
    monkeypatch.setattr(group, "_end", lambda number, reason: RankLost(f"rank {number}: {reason}"))
    outcomes = [Outcome("refused", "it is too large"), None]
    group._watch_uneven(outcomes)
    group._last[1] = Status("denoise", quiet_s=1.0)
    group._watch_uneven(outcomes)
    group._last[1] = Status("denoise", quiet_s=6.0)
    with pytest.raises(RankLost, match="rank 0: refused, and the others wait: it is too large"):
        group._watch_uneven(outcomes)
