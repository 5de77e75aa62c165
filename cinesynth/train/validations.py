"""What validations by videos found, as objects in a run's folder; what is still to validate; and who does it.

    validations/real/<window>.mp4             the real windows
    validations/step-00000500/<window>.mp4    what the checkpoint made of them
    validations/step-00000500.json            the record, written last

A validation that has no record was not done, whatever else is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cinesynth.config import TrainSettings
from cinesynth.errors import AttemptFailed, user_error
from cinesynth.storage import Storage
from cinesynth.train.early_stop import Verdict, best_of, due_steps, judge, possible_bests

log = logging.getLogger("cinesynth.train")

FOLDER = "validations"
SCHEMA = 1
PATIENCE_S = 120.0
"""A validation that loads a model, or is in the middle of a denoising step, looks up no earlier."""


class Validations:
    """Those of one run.

    Args:
        run: the run's folder.
        config: of the training, with `validation_videos`.
    """

    def __init__(self, run: Storage, config: TrainSettings) -> None:
        assert config.validation_videos is not None
        self.run, self.folder = run, run.child(FOLDER)
        self.early_stop = config.early_stop
        self.due = due_steps(config.validation_videos.every, config.optimizer.steps)
        self._read: dict[int, dict[str, Any]] = {}

    def records(self) -> dict[int, dict[str, Any]]:
        """The records by step, ascending; only new ones are read."""
        self._read = read_records(self.folder, self._read)
        return self._read

    def verdict(self) -> Verdict:
        """What they say by now."""
        return self._judged(_lpips(self.records()))

    def missing(self, steps: Sequence[int]) -> list[int]:
        """Those of the steps that are due and not validated yet, ascending; none beyond the one that ends it."""
        return self._missing(_lpips(self.records()), steps)

    def needed(self, steps: Sequence[int]) -> set[int]:
        """Those of the steps whose checkpoints are needed still: not validated yet, or the best, now or maybe later."""
        lpips = _lpips(self.records())  # read once: what others commit meanwhile counts as missing
        if self.early_stop is not None:
            bests = possible_bests(lpips, self.due, self.early_stop)
        else:
            bests = {step for step in [best_of(lpips)] if step is not None}
        return {*self._missing(lpips, steps), *bests}

    def _judged(self, lpips: dict[int, float]) -> Verdict:
        return Verdict(best_of(lpips)) if self.early_stop is None else judge(lpips, self.due, self.early_stop)

    def _missing(self, lpips: dict[int, float], steps: Sequence[int]) -> list[int]:
        ends_at = self._judged(lpips).ends_at
        last = self.due[-1] if ends_at is None else ends_at
        return [step for step in self.due if step in steps and step not in lpips and step <= last]

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Commit a validation."""
        self.folder.write_json(f"{_stem(step)}.json", {"schema": SCHEMA, "step": step, **record})


def read_records(folder: Storage, known: dict[int, dict[str, Any]] | None = None) -> dict[int, dict[str, Any]]:
    """The records in the folder of a run's validations by step, ascending; those that are known are not read again."""
    found = dict(known or {})
    for name in folder.list():
        step = int(name.removeprefix("step-").removesuffix(".json"))
        if step not in found:
            found[step] = folder.read_json(name)
    return dict(sorted(found.items()))


def _lpips(records: dict[int, dict[str, Any]]) -> dict[int, float]:
    return {step: float(record["figures"]["lpips"]) for step, record in records.items()}


def video_file(step: int | None, window_id: str) -> str:
    """The object of a window's video, in the folder of the validations; None: of the real one."""
    return f"{'real' if step is None else _stem(step)}/{window_id}.mp4"


def _stem(step: int) -> str:
    return f"step-{step:08d}"


class Task(Protocol):
    """A validation that somebody else does."""

    def done(self) -> bool: ...

    def result(self) -> Any:
        """A line that tells of it. Raises what went wrong. Called once it is done."""

    def cancel(self) -> Any: ...


class ValidationQueue:
    """Has the missing validations done, one at a time and in the order of steps. One that fails is done again.

    Args:
        missing: steps that can be validated and are not yet, ascending.
        submit: starts the validation of a step.
        attempts: in a row that may fail.
        patience_s: for one that is of no use any more to end by itself.
    """

    def __init__(
        self,
        missing: Callable[[], list[int]],
        submit: Callable[[int], Task],
        attempts: int,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.missing, self.submit, self.attempts, self.patience_s = missing, submit, attempts, patience_s
        self._running: tuple[int, Task] | None = None
        self._failures = 0

    def look(self) -> None:
        """Take what is done, and start what comes next. Never waits.

        Raises what a validation raised, where that would come again or came `attempts` times.
        """
        if self._running is not None:
            if not self._running[1].done():
                return
            (step, task), self._running = self._running, None
            self._take(step, task)
        if steps := self.missing():
            self._running = steps[0], self.submit(steps[0])

    def finish(self, check: Callable[[], None], glance_s: float = 0.5) -> None:
        """Wait until nothing is missing. What is running then is of no use any more: it ends by itself, or is ended."""
        while self.missing():
            self.look()
            check()
            time.sleep(glance_s)
        if self._running is None:
            return
        (step, task), self._running = self._running, None
        deadline = time.monotonic() + self.patience_s
        while not task.done():
            if time.monotonic() > deadline:
                log.info("the validation of step %d is of no use any more, and is ended", step)
                task.cancel()
                return
            check()
            time.sleep(glance_s)

    def _take(self, step: int, task: Task) -> None:
        try:
            told = task.result()
        except Exception as e:
            found = user_error(e)
            self._failures += 1
            if self._failures >= self.attempts or (found is not None and not isinstance(found, AttemptFailed)):
                raise
            said = str(found or e).strip().splitlines()[-1][:300]
            log.warning(
                "the validation of step %d failed (%s); it is done again (failure %d of at most %d)",
                *(step, said, self._failures, self.attempts),
            )
        else:
            self._failures = 0
            log.info("%s", told)
