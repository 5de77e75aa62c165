"""Progress of a stage: a line in the log every few seconds, and series for Prometheus (`cinesynth/telemetry.py`)."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from cinesynth.telemetry import Telemetry

log = logging.getLogger("cinesynth.prepare")

_EVERY_S = 10.0
_STORE_S = 20.0


class Progress:
    """Counts the finished items of a stage.

    Args:
        stage: `hash`, `scan`, `annotate` or `encode`.
        run: name of the run, a label of the series.
        total: number of items.
        unit: name of the items, such as `files`.
        done: number of items that earlier attempts finished.
    """

    def __init__(self, stage: str, run: str, total: int, unit: str, done: int = 0) -> None:
        self._stage, self._unit, self._total, self._before = stage, unit, total, done
        self._done, self._errors = done, 0
        self._started = self._logged = time.monotonic()
        self._telemetry = Telemetry(stage=stage, run=run)
        self._show(0.0)

    def add(self, done: int, errors: int = 0) -> None:
        """Count items that were finished, and how many of them were rejected."""
        self._done += done
        self._errors += errors
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._started, 1e-6)
        self._show(rate)
        if now - self._logged >= _EVERY_S or (self._done >= self._total and done + errors):
            self._logged = now
            left = f", ETA {(self._total - self._done) / rate:.0f} s" if rate and self._done < self._total else ""
            log.info(
                "%s: %d/%d %s, %.2f %s/s%s, %d errors",
                *(self._stage, self._done, self._total, self._unit, rate, self._unit, left, self._errors),
            )

    def _show(self, rate: float) -> None:
        show = self._telemetry.set
        show("cinesynth_prepare_items", self._total)
        show("cinesynth_prepare_items_done", self._done)
        show("cinesynth_prepare_items_failed", self._errors)
        show("cinesynth_prepare_items_per_second", rate)
        show("cinesynth_prepare_remaining_seconds", (self._total - self._done) / rate if rate else 0.0)


def show_plan(run: str, windows: int, reasons: Iterable[str]) -> None:
    """Show how many windows a run has planned, and how many files and windows were rejected for each reason."""
    telemetry = Telemetry(run=run)
    telemetry.set("cinesynth_prepare_windows", windows)
    for reason, count in Counter(reasons).items():
        telemetry.set("cinesynth_prepare_rejects", count, reason=reason)


def in_parts(rows: Any, progress: Progress) -> Iterator[pa.Table]:
    """The result tables of a graph as they come, joined so that there is one about every `_STORE_S` seconds.

    They have a column `error`, which is empty where an item is fine.
    """
    waiting: list[pa.Table] = []
    since = time.monotonic()
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        progress.add(len(batch), errors=sum(bool(error) for error in batch["error"].to_pylist()))
        waiting.append(batch)
        if time.monotonic() - since > _STORE_S:
            yield pa.concat_tables(waiting)
            waiting, since = [], time.monotonic()
    if waiting:
        yield pa.concat_tables(waiting)
