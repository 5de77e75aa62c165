"""The order that takes one of each group before a second one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from cinesynth.data.dataset import WindowFacts

W = TypeVar("W", bound=WindowFacts)
Item = TypeVar("Item")


def spread(windows: Iterable[W]) -> list[W]:
    """First one window of every group, then a second one of each, and so on."""
    return in_turn(sorted(windows, key=lambda w: (w.group, w.start_s)), lambda w: w.group)


def some_of(windows: Sequence[W], most: int | None) -> list[W]:
    """At most so many of the windows, one of each group before a second, in their own order; None: all."""
    chosen = {w.window_id for w in spread(windows)[:most]}
    return [w for w in windows if w.window_id in chosen]


def in_turn(items: Iterable[Item], group: Callable[[Item], str]) -> list[Item]:
    """The first item of every group, then the second one of each, and so on; otherwise in their order."""
    seen: Counter[str] = Counter()
    ranked = []
    for item in items:
        ranked.append((seen[group(item)], item))
        seen[group(item)] += 1
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]
