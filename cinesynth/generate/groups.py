"""Several groups that take videos off one list, in placement groups of the job. A group that is lost is made anew, and
its video goes on from the last state that was kept."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cinesynth.config import GenerateConfig
from cinesynth.errors import RankLost
from cinesynth.generate.group import RankGroup
from cinesynth.generate.messages import VideoRequest
from cinesynth.generate.shape import GroupShape
from cinesynth.session import check_room
from cinesynth.wan.kernels import Kernels

log = logging.getLogger("cinesynth.generate")

Work = Callable[[RankGroup], dict[str, Any]]
"""Has a group make a video; returns as `RankGroup.result` does. Called again with another group where one is lost."""
ATTEMPTS = 3
"""Groups that may be lost over one video."""
_ROOM_S = 2.0
"""Seconds between two looks at whether a group that waits for room is still needed."""


def shape_of(config: GenerateConfig, sizes: Iterable[tuple[int, int, int]]) -> GroupShape:
    """The groups of a generation whose videos have these frames, heights and widths."""
    return GroupShape(
        config.model,
        config.ranks,
        config.cpus_per_worker,
        1.0 if config.use_gpu else 0.0,
        Kernels(config.attention, config.compile),
        config.strategy,
        tuple(sorted(set(sizes))),
        config.merge,
    )


@contextmanager
def placements(config: GenerateConfig, shape: GroupShape) -> Iterator[list[Any]]:
    """A placement group for each worker of a generation, in the connected cluster, for as long as the block runs.

    Raises ConfigError where the cluster cannot hold them.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    pool = config.resources
    check_room(config.workers, config.ranks * shape.cpus, config.ranks * shape.gpus, pool)
    bundles = [bundle | pool.resources(shape.gpus) for bundle in shape.bundles()]
    labels = {"bundle_label_selector": [pool.selector()] * len(bundles)} if pool.labels else {}
    made = [
        placement_group(bundles, strategy="STRICT_PACK", name=f"{config.name} {i}", **labels)
        for i in range(config.workers)
    ]
    try:
        yield made
    finally:
        if ray.is_initialized():
            for placement in made:
                remove_placement_group(placement)


def whole(request: VideoRequest) -> Work:
    """A video that is made at once."""

    def work(group: RankGroup) -> dict[str, Any]:
        group.start(request)
        return group.result()

    return work


def make_videos(
    config: GenerateConfig, shape: GroupShape, videos: Mapping[str, Work], made: Callable[[dict[str, Any]], None]
) -> None:
    """Make videos, each by one of `config.workers` groups.

    Args:
        config: of the generation.
        shape: of each group.
        videos: by file. A group loads adapters when they change, so videos with the same ones follow each other.
        made: called from several threads, one at a time, with what a group says of each video: its `file`, `seconds` by
            stage, and the group's number, `device` and `load_seconds`.

    Raises CinesynthError for a request that is refused, and RankLost when a video has cost `ATTEMPTS` groups.
    """
    left: queue.SimpleQueue[tuple[str, Work]] = queue.SimpleQueue()
    for video in videos.items():
        left.put(video)
    errors: list[BaseException] = []
    lock = threading.Lock()
    groups: dict[int, RankGroup] = {}

    def work(number: int, placement: Any) -> None:
        try:
            for told in _made_by(config, shape, number, placement, left, groups, errors):
                with lock:
                    made({"group": number, **told})
        except BaseException as e:
            errors.append(e)

    with placements(config, shape) as there:
        threads = [
            threading.Thread(target=work, args=(i, placement), name=f"group {i}", daemon=True)
            for i, placement in enumerate(there)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive() and not errors:
                    thread.join(0.2)
        finally:
            for group in list(groups.values()):
                group.close()
    if errors:
        raise errors[0]


def _made_by(
    config: GenerateConfig,
    shape: GroupShape,
    number: int,
    placement: Any,
    left: queue.SimpleQueue[tuple[str, Work]],
    groups: dict[int, RankGroup],
    errors: Sequence[BaseException],
) -> Iterator[dict[str, Any]]:
    """What a group makes, until nothing is left or something went wrong elsewhere. It waits for its room."""
    if not _room(placement, lambda: not errors and not left.empty()):  # others have made it all
        return
    while not errors:
        try:
            file, work = left.get_nowait()
        except queue.Empty:
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if number not in groups or not groups[number].usable:
                    if not _room(placement, lambda: not errors):  # it had some; its node may be lost
                        return
                    groups[number] = _new_group(config, shape, placement)
                told = work(groups[number])
                ranks = groups[number].loaded
                load = max(rank["load_seconds"] for rank in ranks)
                yield {**told, "file": file, "load_seconds": load, "device": ranks[0]["device"]}
                break
            except RankLost as e:
                if errors:  # something went wrong elsewhere, and all groups were ended
                    return
                if attempt == ATTEMPTS:
                    raise
                log.warning("%s; %s is made by a new group (%d of %d)", e, file, attempt + 1, ATTEMPTS)


def _room(placement: Any, needed: Callable[[], bool]) -> bool:
    """Wait for a placement group's room while it is needed; returns whether it is there."""
    while needed():
        if placement.wait(_ROOM_S):
            return True
    return False


def _new_group(config: GenerateConfig, shape: GroupShape, placement: Any) -> RankGroup:
    started = time.monotonic()
    group = RankGroup(shape, placement)
    ranks = f"{config.ranks} ranks" if config.ranks > 1 else "one rank"
    log.info("a group of %s is there after %.0f s", ranks, time.monotonic() - started)
    return group
