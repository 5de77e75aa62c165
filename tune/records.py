"""The trials of a study as objects in its run's folder: they are the truth, whatever Tune and Optuna know.

trials/<name>.json    point, seed, status, figures of a trial that ended; <name> is its train run
base.json             figures of the base model
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from cinesynth.data.records import Reject, left_out
from cinesynth.storage import Storage
from tune.front import Values
from tune.space import Point, Trial

FOLDER = "trials"
SCHEMA = 1
COMPLETE, FAILED, CUT = "complete", "failed", "cut"


@dataclass(frozen=True)
class Record:
    """A trial that ended."""

    name: str
    trial: Trial
    status: str
    figures: dict[str, float] = field(default_factory=dict)
    """Metrics of its videos of the val split."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Windows, seconds, size; of one that failed or was cut the reason."""
    ended: float = 0.0
    """Seconds since the epoch."""

    def values(self, objectives: tuple[str, str]) -> Values | None:
        """Both objectives; None where the trial has not both, as finite numbers."""
        first, second = (self.figures.get(name, math.nan) for name in objectives)
        return (first, second) if self.status == COMPLETE and math.isfinite(first) and math.isfinite(second) else None


class Records:
    """Those of one study.

    Args:
        study: the study's run folder.
    """

    def __init__(self, study: Storage) -> None:
        self.folder = study

    def write(self, record: Record) -> None:
        """Commit a trial."""
        self.folder.write_json(
            f"{FOLDER}/{record.name}.json",
            {
                "schema": SCHEMA,
                "point": record.trial.point.to_json(),
                "seed": record.trial.seed,
                "status": record.status,
                "figures": record.figures,
                "facts": record.facts,
                "ended": record.ended,
            },
        )

    def read(self) -> dict[str, Record]:
        """All that ended, by name, in the order in which they did."""
        found = []
        for file in self.folder.list(FOLDER):
            value = self.folder.read_json(file)
            name = file.removeprefix(f"{FOLDER}/").removesuffix(".json")
            trial = Trial(Point.from_json(value["point"]), value["seed"])
            found.append(Record(name, trial, value["status"], value["figures"], value["facts"], value["ended"]))
        return {record.name: record for record in sorted(found, key=lambda r: (r.ended, r.name))}

    def left_out(self) -> dict[str, str]:
        """`failed` and `cut` to how many trials ended so, and the first of them with its reason."""
        ended = [record for record in self.read().values() if record.status in (FAILED, CUT)]
        return left_out([Reject(record.name, record.status, record.facts["reason"]) for record in ended])
