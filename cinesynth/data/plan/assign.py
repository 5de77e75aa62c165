"""Which windows a dataset holds, in which group and split: filters, near-duplicates, and what was assigned before.

An assigned group never moves: what a plan says of a shot, every later plan of the same dataset says too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cinesynth.data.config import PrepareSettings, Range, SplitSettings
from cinesynth.data.plan.duplicates import clusters
from cinesynth.data.records import Reject, Window

MIN_GROUPS = 3
"""With fewer groups a domain is trained on whole: val and test stay empty."""


@dataclass(frozen=True)
class Assigned:
    """What an earlier plan said of a shot."""

    group: str
    split: str


def filter_windows(windows: Iterable[Window], filters: Mapping[Any, Range]) -> tuple[list[Window], list[Reject]]:
    """Keep the windows whose scores lie inside their ranges. A score that was not measured keeps a window in."""
    kept, rejects = [], []
    for window in windows:
        why = next((w for name, range_ in filters.items() if (w := _outside(window, name, range_))), None)
        if why is None:
            kept.append(window)
        else:
            name, detail = why
            rejects.append(_reject(window, f"filter_{name}", detail))
    return kept, rejects


def assign(
    windows: Sequence[Window],
    alike: Iterable[tuple[str, str]],
    settings: PrepareSettings,
    before: Mapping[str, Assigned],
) -> tuple[list[Window], list[Reject]]:
    """Give windows a group and a split. Returns them, and rejects of those that near-duplicates exclude.

    Args:
        windows: in the order of footage, with those of earlier plans that the footage does not hold any more.
        alike: pairs of shot ids that show nearly the same.
        settings: of the dataset.
        before: shot id to what an earlier plan said of it.
    """
    same = clusters(alike) if settings.duplicates.action != "keep" else {}
    rejects: list[Reject] = []
    if settings.duplicates.action == "drop":
        windows, rejects = _without_repeats(windows, same, before)
        same = {}
    groups = _linked_groups(windows, same, before)
    splits, clashes = _splits(windows, groups, settings.split, before)
    kept = []
    for window in windows:
        old = before.get(window.shot_id)
        group = groups[window.shot_id]
        window = replace(window, own_group=window.own_group or window.group)
        if old is not None:
            kept.append(replace(window, group=old.group, split=old.split))
        elif group in clashes:
            detail = f"it shows nearly the same as footage in {' and in '.join(sorted(clashes[group]))}"
            rejects.append(_reject(window, "divided_duplicate", detail))
        else:
            kept.append(replace(window, group=group, split=splits[group]))
    return kept, rejects


def assign_split(group: str, domain: str, settings: SplitSettings) -> str:
    """`test`, `val` or `train`, by a hash of salt, domain and group: other footage never changes it."""
    digest = hashlib.sha256("\0".join((settings.salt, domain, group)).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if share < settings.test else "val" if share < settings.test + settings.val else "train"


def _outside(window: Window, name: str, range_: Range) -> tuple[str, str] | None:
    value = window.scores.get(name)
    if value is None:
        return None
    if range_.min is not None and value < range_.min:
        return name, f"{name} {value:g} is below {range_.min:g}"
    if range_.max is not None and value > range_.max:
        return name, f"{name} {value:g} is above {range_.max:g}"
    return None


def _without_repeats(
    windows: Sequence[Window], same: Mapping[str, str], before: Mapping[str, Assigned]
) -> tuple[list[Window], list[Reject]]:
    """The windows of one shot of each cluster: one that is in the dataset already, else the first."""
    chosen: dict[str, str] = {}
    for window in sorted(windows, key=lambda w: w.shot_id not in before):
        chosen.setdefault(same.get(window.shot_id, window.shot_id), window.shot_id)
    kept, rejects = [], []
    for window in windows:
        first = chosen[same.get(window.shot_id, window.shot_id)]
        if window.shot_id == first or window.shot_id in before:
            kept.append(window)
        else:
            rejects.append(_reject(window, "near_duplicate", f"it shows nearly the same as shot {first}"))
    return kept, rejects


def _linked_groups(
    windows: Sequence[Window], same: Mapping[str, str], before: Mapping[str, Assigned]
) -> dict[str, str]:
    """The group of each shot id. Groups that share a cluster of shots are joined, under the earlier name if any."""
    own = {w.shot_id: before[w.shot_id].group if w.shot_id in before else w.group for w in windows}
    links = [(own[shot], own[root]) for shot, root in same.items() if shot in own and root in own]
    # New shots may be in the group that a known shot's source names, or named last, or in that named after its file.
    now = {w.group for w in windows if w.shot_id not in before}
    for w in windows:
        if w.shot_id in before:
            names_of_it = (w.group, w.own_group, w.source_sha256[:16])
            links += [(before[w.shot_id].group, name) for name in names_of_it if name in now]
    joined = clusters(links)
    members: dict[str, set[str]] = defaultdict(set)
    for group in own.values():
        members[joined.get(group, group)].add(group)
    old = {assigned.group for assigned in before.values()}
    names = {root: min(groups & old or groups) for root, groups in members.items()}
    return {shot: names[joined.get(group, group)] for shot, group in own.items()}


def _splits(
    windows: Sequence[Window], groups: Mapping[str, str], settings: SplitSettings, before: Mapping[str, Assigned]
) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Group to split, and the groups that earlier plans have put into more than one."""
    domains: dict[str, str] = {}
    old: dict[str, set[str]] = defaultdict(set)
    for window in windows:
        group = groups[window.shot_id]
        domains[group] = min(window.domain, domains.get(group, window.domain))
        if window.shot_id in before:
            old[group].add(before[window.shot_id].split)
    count: dict[str, int] = defaultdict(int)
    for domain in domains.values():
        count[domain] += 1
    splits = {}
    for group, domain in domains.items():
        if old[group]:
            splits[group] = min(old[group])
        else:
            splits[group] = assign_split(group, domain, settings) if count[domain] >= MIN_GROUPS else "train"
    return splits, {group: found for group, found in old.items() if len(found) > 1}


def _reject(window: Window, reason: str, detail: str) -> Reject:
    where = f"window at {window.start_s:.2f}-{window.end_s:.2f} s"
    return Reject(window.source_uri, reason, f"{where}: {detail}", window.window_id)
