"""A group of Ray actors that make each video together: one actor a rank, in a placement group that the caller gives.

A request that is refused, or called off, leaves the group as it was. Once the ranks wait for each other, an error on
one of them would leave the others waiting: then all processes are ended, and `RankLost` names the rank and how far it
was. The caller makes a new group; the placement group stays the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import cinesynth.errors
from cinesynth.errors import CinesynthError, RankLost
from cinesynth.generate.course import Cancelled
from cinesynth.generate.messages import Outcome, Status, VideoRequest
from cinesynth.generate.shape import GroupShape

log = logging.getLogger("cinesynth.generate")

_GLANCE_S = 0.1


class RankGroup:
    """A group with its model loaded. One video at a time.

    Args:
        shape: of the group.
        placement: a ready placement group with `shape.bundles()`.

    Raises RankLost when a rank cannot start, and ModelError for a model that cannot be loaded.
    """

    def __init__(self, shape: GroupShape, placement: Any) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.shape, self.placement = shape, placement
        self._ray = ray
        self._lost: str | None = None
        self._last: dict[int, Status] = {}
        self._answered: dict[int, float] = {}
        self._asked: dict[int, Any] = {}
        self._pids: list[int] = []
        actor: Any = ray.remote(RankProcess)
        self._ranks: list[Any] = [
            actor.options(
                num_cpus=shape.cpus,
                num_gpus=shape.gpus,
                max_concurrency=4,  # control calls are answered while `join` loads the model
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=number),
            ).remote(shape, number)
            for number in range(shape.ranks)
        ]
        try:
            self.loaded = self._join()
        except BaseException:
            self.close()
            raise
        self._pids = [rank["pid"] for rank in self.loaded]
        self._working = False

    def _join(self) -> list[dict[str, Any]]:
        ray = self._ray
        host = "127.0.0.1"  # STRICT_PACK: all ranks lie on one node
        try:
            port = ray.get(self._ranks[0].offer.remote(host), timeout=self.shape.load_s) if self.shape.ranks > 1 else 0
            return list(ray.get([rank.join.remote(host, port) for rank in self._ranks], timeout=self.shape.load_s))
        except ray.exceptions.GetTimeoutError as e:
            raise RankLost(f"the group of {self.shape.ranks} was not ready after {self.shape.load_s:g} s") from e
        except ray.exceptions.RayActorError as e:
            raise RankLost(f"a rank of the group died while it started: {_first_line(e)}") from e

    def start(self, request: VideoRequest) -> None:
        """Begin a video. Raises RankLost for a group that ended, RuntimeError while a video is being made."""
        self._check()
        if self._working:
            raise RuntimeError("a video is being made; take its result first")
        self._watch_anew()
        self._call([rank.start.remote(request) for rank in self._ranks])
        self._working = True

    def _watch_anew(self) -> None:
        self._last, self._asked = {}, {}
        self._answered = dict.fromkeys(range(self.shape.ranks), time.monotonic())

    def alive(self) -> bool:
        """Whether, between two videos, no rank is found dead. One that is stopped is found when a video begins."""
        if self._lost is None and not self._working:
            self._watch_anew()
            with contextlib.suppress(RankLost):
                self._look()
        return self._lost is None

    def progress(self) -> Status:
        """How far the video is, as rank 0 tells. Raises RankLost once a rank is found dead, stopped or hanging."""
        self._look()
        return self._last[0]

    def cancel(self) -> None:
        """Call the video off; `result` then raises Cancelled."""
        for rank in self._ranks:
            rank.cancel.remote()

    def result(self, look: Callable[[Status], None] = lambda status: None) -> dict[str, Any]:
        """Wait for the video; returns `sha256`, `provenance` and `seconds` by stage.

        Args:
            look: called with the progress, several times a second. What it raises is raised here; the video goes on.

        Raises:
            Cancelled: it was called off.
            CinesynthError: the request is at fault, as `Generator` says. The group takes the next one.
            OutOfMemory: the group ended, and another one would do no better.
            StorageFailed: the group ended, over a file.
            RankLost: the group ended.
        """
        while True:
            look(self.progress())
            outcomes = self._call([rank.outcome.remote(_GLANCE_S) for rank in self._ranks])
            broken = [(number, o) for number, o in enumerate(outcomes) if o is not None and o.kind == "broken"]
            if broken:
                number, outcome = next((b for b in broken if b[1].error), broken[0])  # the others' may follow from it
                lost = self._end(number, outcome.reason)
                raise getattr(cinesynth.errors, outcome.error)(str(lost)) if outcome.error else lost
            if all(outcome is not None for outcome in outcomes):
                self._working = False
                return self._told(outcomes)
            if any(outcome is not None for outcome in outcomes):
                self._watch_uneven(outcomes)

    def close(self) -> None:
        """End the processes. The placement group stays."""
        for rank in self._ranks:
            self._ray.kill(rank)
        self._lost = self._lost or "it was closed"

    @property
    def usable(self) -> bool:
        """Whether the group takes another video."""
        return self._lost is None

    def _told(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        first = outcomes[0]
        kinds = {outcome.kind for outcome in outcomes}
        if len(kinds) > 1:  # the ranks did not agree: what they are in is not known
            number = next(i for i, o in enumerate(outcomes) if o.kind != first.kind)
            raise self._end(number, f"{outcomes[number].kind}, but rank 0 {first.kind}: {first.reason}")
        if first.kind == "cancelled":
            raise Cancelled(first.reason)
        if first.kind == "refused":
            kind = getattr(cinesynth.errors, first.error, CinesynthError)
            raise kind(first.reason)
        return first.made

    def _watch_uneven(self, outcomes: Sequence[Outcome | None]) -> None:
        """A rank that was refused alone leaves the others waiting in a collective, for which they are given up."""
        refused = [i for i, o in enumerate(outcomes) if o is not None and o.kind in ("refused", "cancelled")]
        waiting = [i for i, o in enumerate(outcomes) if o is None]
        if refused and all(i in self._last and self._last[i].quiet_s > self.shape.answer_s for i in waiting):
            outcome = outcomes[refused[0]]
            assert outcome is not None
            raise self._end(refused[0], f"{outcome.kind}, and the others wait: {outcome.reason}")

    def _look(self) -> None:
        """Ask every rank how far it is, until rank 0 told; find those that are dead, stopped or hang."""
        self._check()
        first = True
        while first or 0 not in self._last:
            first = False
            self._ask()
        for number, status in self._last.items():
            if self._working and status.stage != "idle" and status.quiet_s > self.shape.quiet_s:
                raise self._end(number, f"it got nothing done for {self.shape.quiet_s:g} s")

    def _ask(self) -> None:
        """Take the answers that are there, and ask those ranks again that have answered."""
        ray, now = self._ray, time.monotonic()
        for number, rank in enumerate(self._ranks):
            if number not in self._asked:
                self._asked[number] = rank.status.remote()
        ready, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=_GLANCE_S)
        for number, ref in list(self._asked.items()):
            if ref in ready:
                del self._asked[number]
                try:
                    self._last[number] = ray.get(ref)
                except ray.exceptions.RayActorError as e:
                    raise self._end(number, f"its process died: {_first_line(e)}") from e
                self._answered[number] = now
            elif now - self._answered[number] > self.shape.answer_s:
                raise self._end(number, f"it did not answer for {self.shape.answer_s:g} s")

    def _end(self, number: int, reason: str) -> RankLost:
        """End all processes, stopped ones too; returns the error that tells of it."""
        status = self._last.get(number)
        where = "" if status is None else f" in {status.stage}, step {status.step} of {status.total},"
        self._lost = f"rank {number} of {self.shape.ranks}{where} failed: {reason}"
        for rank in self._ranks:
            self._ray.kill(rank)
        self._kill_processes()
        return RankLost(self._lost)

    def _kill_processes(self) -> None:
        """SIGKILL by pid on the ranks' node: Ray asks a process to end, which one that is stopped does not hear."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self.placement, placement_group_bundle_index=0)
        killing = self._ray.remote(_kill).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)
        try:
            self._ray.get(killing.remote(self._pids), timeout=self.shape.answer_s)
        except self._ray.exceptions.RayError as e:  # the node itself may be gone
            log.warning("the processes of a lost group cannot be ended by pid: %s", _first_line(e))

    def _call(self, refs: list[Any]) -> list[Any]:
        ray = self._ray
        try:
            return list(ray.get(refs, timeout=self.shape.answer_s))
        except ray.exceptions.GetTimeoutError as e:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            number = next((i for i, ref in enumerate(refs) if ref not in done), 0)
            raise self._end(number, f"it did not answer for {self.shape.answer_s:g} s") from e
        except ray.exceptions.RayActorError as e:
            for number, ref in enumerate(refs):
                try:
                    ray.get(ref, timeout=0)
                except ray.exceptions.GetTimeoutError:
                    continue
                except ray.exceptions.RayActorError:
                    raise self._end(number, f"its process died: {_first_line(e)}") from e
            raise self._end(0, _first_line(e)) from e

    def _check(self) -> None:
        if self._lost is not None:
            raise RankLost(f"the group has ended: {self._lost}")


class RankProcess:
    """A `Rank` as an actor: its own process loads PyTorch, and who directs the group does not."""

    def __init__(self, shape: GroupShape, number: int) -> None:
        from cinesynth.generate.rank import Rank

        self._rank = Rank(shape, number)

    def __repr__(self) -> str:
        return repr(self._rank)

    def offer(self, host: str) -> int:
        return self._rank.offer(host)

    def join(self, host: str, port: int) -> dict[str, Any]:
        return self._rank.join(host, port)

    def start(self, request: VideoRequest) -> None:
        self._rank.start(request)

    def status(self) -> Status:
        return self._rank.status()

    def outcome(self, wait_s: float = 0.0) -> Outcome | None:
        return self._rank.outcome(wait_s)

    def cancel(self) -> None:
        self._rank.cancel()


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
