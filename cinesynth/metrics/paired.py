"""Which videos a comparison of arms rests on: those that all arms have, so that every comparison rests on the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairing:
    """The videos of an arm and of the baseline that their comparison takes.

    Attributes:
        arm: ids of the arm's videos.
        baseline: ids of the baseline's videos: the same, unless the two share no name.
        left_out: arm to how many of its videos the comparison does not take; only arms that lose some.
    """

    arm: tuple[str, ...]
    baseline: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def n(self) -> int:
        """Videos that the comparison takes of the smaller of the two."""
        return min(len(self.arm), len(self.baseline))


def pairing(ids: Mapping[str, Collection[str]], arm: str) -> Pairing:
    """How an arm is compared with the baseline.

    Both take the videos that all arms have. An arm that shares no name with the baseline, or has no video, takes
    nothing from the others; compared itself, it and the baseline are two unpaired samples, whole.

    Args:
        ids: arm to the ids that a metric has of it; the baseline first.
        arm: which of them.
    """
    baseline, *others = ids
    shared = set(ids[baseline])
    if shared.isdisjoint(ids[arm]):
        return Pairing(tuple(ids[arm]), tuple(ids[baseline]), {})
    for other in others:
        if not set(ids[baseline]).isdisjoint(ids[other]):
            shared &= set(ids[other])
    taken = tuple(key for key in ids[baseline] if key in shared)
    lost = {name: len(ids[name]) - len(taken) for name in (baseline, arm)}
    return Pairing(taken, taken, {name: count for name, count in lost.items() if count})


NOTHING_SHARED = "no comparison: there is no video that all arms have"
