"""What of a job waits for room in the cluster is told in its log: Ray itself waits for ever, without a word."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("cinesynth.session")

FIRST_S = 20.0
"""Seconds after which what waits is told."""
AGAIN_S = 600.0
"""Seconds after which it is told again."""
_GLANCE_S, _SELDOM_S = 5.0, 60.0
"""Seconds between two looks while something waits; and when for long nothing has."""
_HOLDERS = 5
"""Most holders of resources that a line names."""
_WHERE = ("node:", "accelerator_type:")
"""Beginnings of resources that say where, not how much."""

Needs = Sequence[Mapping[str, float]]
"""Resources of each of the places that are needed at once."""


@contextmanager
def waits_told() -> Iterator[None]:
    """While the block runs, the log tells of actors and placement groups of this driver that wait for room."""
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(ended,), name="tells-what-waits", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join(_GLANCE_S)


def _watch(ended: threading.Event) -> None:
    import ray

    waits, pause = Waits(), _GLANCE_S
    while not ended.wait(pause):
        found: dict[str, Needs] = {}
        try:
            found = pending()
            lines = waits.look({key: in_words(needs) for key, needs in found.items()}, time.monotonic())
            free = room(found.values(), ray.cluster_resources(), ray.available_resources()) if lines else ""
            for line in lines:
                log.info("%s; free are %s", line, free)
            if lines and (held := holders({name for needs in found.values() for need in needs for name in need})):
                log.info("they are held by %s", ", ".join(held))
        except Exception as e:  # the head may be gone, of which the job itself tells
            log.debug("what waits is not known: %s", e)
        pause = _GLANCE_S if found else min(2 * pause, _SELDOM_S)


class Waits:
    """What waits, and since when."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def look(self, pending: Mapping[str, str], now: float) -> list[str]:
        """Lines to tell now: of what has waited for `FIRST_S`, and again every `AGAIN_S`.

        Args:
            pending: what waits at the moment, in words, by its id.
            now: seconds on a clock that only runs forward.
        """
        self._since = {key: self._since.get(key, now) for key in pending}
        self._told = {what: told for what, told in self._told.items() if what in pending.values()}
        long = [key for key in pending if now - self._since[key] >= FIRST_S]
        lines = []
        for what, number in Counter(pending[key] for key in long).items():
            if now - self._told.get(what, -AGAIN_S) < AGAIN_S:
                continue
            self._told[what] = now
            seconds = now - min(self._since[key] for key in long if pending[key] == what)
            times = f"{number} times " if number > 1 else ""
            lines.append(f"waiting for room for {seconds:.0f} s: {times}{what}")
        return lines


def pending() -> dict[str, Needs]:
    """What this driver has asked of the connected cluster and has no place yet, by its id."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    options = _options()
    job = ray.get_runtime_context().get_job_id()
    groups = list_placement_groups(filters=[("state", "=", "PENDING"), ("creator_job_id", "=", job)], **options)
    found: dict[str, Needs] = {
        group.placement_group_id: [bundle["unit_resources"] for bundle in group.bundles or []] for group in groups
    }
    for actor in list_actors(filters=[("state", "=", "PENDING_CREATION"), ("job_id", "=", job)], **options):
        if not actor.pid and not actor.placement_group_id:  # else it starts, or waits as a part of its group
            found[actor.actor_id] = [actor.required_resources or {}]
    return found


def holders(names: Collection[str]) -> list[str]:
    """Who has some of the resources of these names in the connected cluster, in words: actors and placement groups of
    all its jobs, the most frequent first, and a number for what would be more than `_HOLDERS`.

    Tasks that run for a moment are not among them.
    """
    from ray.util.state import list_actors, list_jobs, list_placement_groups

    options = _options()
    jobs = {job.job_id: (job.metadata or {}).get("run") for job in list_jobs(**options)}
    held: Counter[str] = Counter()

    def add(name: str, job: str, needs: Needs) -> None:
        if has := in_words([{name: n for name, n in need.items() if name in names} for need in needs]):
            held[f"{name} of {f'run {jobs[job]}' if jobs.get(job) else f'job {job}'} ({has})"] += 1

    for group in list_placement_groups(filters=[("state", "=", "CREATED")], **options):
        add(group.name or "a placement group", group.creator_job_id, [b["unit_resources"] for b in group.bundles or []])
    for actor in list_actors(filters=[("state", "=", "ALIVE")], **options):
        if not actor.placement_group_id:  # else its group is told
            add(actor.name or actor.class_name.rpartition(".")[2], actor.job_id, [actor.required_resources or {}])
    found = [f"{number} x {who}" if number > 1 else who for who, number in held.most_common()]
    more = len(found) - _HOLDERS
    return [*found[:_HOLDERS], f"{more} others"] if more > 0 else found


def _options() -> dict[str, Any]:
    """Of calls of the state API. By its address: where a machine has several heads, it would not know which one."""
    import ray

    return {"address": ray.get_runtime_context().gcs_address, "detail": True, "limit": 1000, "timeout": 10}


def in_words(needs: Needs) -> str:
    """Such as `2 x 8 CPU and 1 GPU`."""
    parts = Counter(" and ".join(f"{n:g} {name}" for name, n in _amounts(need).items()) for need in needs)
    return ", ".join(f"{number} x {part}" if number > 1 else part for part, number in parts.items() if part)


def room(needs: Iterable[Needs], there: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Of the resources that are needed, how much nobody has: such as `4 of 16 CPU and 0 of 2 GPU`.

    Args:
        needs: of all that waits.
        there: resources of the cluster.
        free: those of them that nobody has.
    """
    names = dict.fromkeys(name for places in needs for need in places for name in _amounts(need))
    return " and ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}" for name in names)


def _amounts(need: Mapping[str, float]) -> dict[str, float]:
    """What is needed of each resource, CPUs first."""
    found = [(name, n) for name, n in need.items() if n and not name.startswith(_WHERE)]
    return dict(sorted(found, key=lambda item: (item[0] != "CPU", item[0])))
