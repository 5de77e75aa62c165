"""One trial, in a process of Tune's: it trains, has itself scored, and puts on record how it ended.

What fails by itself is tried once more, here; what is lost with its process goes on in another one (`tune.search`).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from typing import Any

from cinesynth.config import TuneConfig
from cinesynth.errors import Cut, user_error
from cinesynth.runs import read_events
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.beside import OnValidation
from cinesynth.train.driver import train
from cinesynth.train.events import training_steps
from tune.halving import Rungs
from tune.records import COMPLETE, CUT, FAILED, Record, Records
from tune.space import Point, Trial, training_of

log = logging.getLogger("cinesynth.tune")

TRIES = 2
"""Of a trial that fails by itself, until it counts as failed."""


def run_trial(task: dict[str, Any]) -> None:
    """One trial: train, have it scored, and put it on record. Runs in a process of Tune's."""
    from ray import tune

    config = parse_config(TuneConfig, task["config"])
    trial = Trial(Point.from_json(task["point"]), task["seed"])
    name = trial.name(config.name)
    records = Records(Storage.open(config.storage).child("runs", config.name))
    if name not in records.read():
        waited = round(time.time() - task["asked"], 1)
        reason = records_trial(
            config, trial, records, task["scorer"], waited, lambda step, figures: tune.report({"step": step, **figures})
        )
        if reason is not None:
            tune.report({"status": FAILED, "reason": reason})
            return
    record = records.read()[name]
    tune.report({"status": record.status, **record.figures})


def records_trial(
    config: TuneConfig, trial: Trial, records: Records, scorer: Any, waited: float, report: OnValidation
) -> str | None:
    """Train and score a trial, and put on record how it ended; returns why it failed, where it did.

    A failure is for the study's driver to record: where that one is killed, what it owned fails with it.

    Args:
        config: of the study.
        trial: what to train.
        records: of the study.
        scorer: the study's.
        waited: seconds since the trial was asked for.
        report: called with each validation.
    """
    import ray

    name = trial.name(config.name)
    started = time.time()
    rungs = None
    if config.asha is not None:
        rungs = Rungs(records.folder, config.asha, config.train)

    def on_validation(step: int, figures: Mapping[str, float]) -> None:
        report(step, figures)
        if rungs is not None and "val_loss" in figures:
            is_baseline = trial.point == Point.of(config.train)
            reason = rungs.reaches(name, step, figures["val_loss"], spared=is_baseline)
            if reason is not None:
                raise Cut(reason)

    for left in reversed(range(TRIES)):
        try:
            trained = train(training_of(config, trial), [on_validation])
            trained_at = time.time()
            scored = ray.get(scorer.score.remote(name))
            break
        except Cut as e:
            facts = {"reason": str(e), "train_seconds": round(time.time() - started, 1)}
            records.write(Record(name, trial, CUT, facts=facts, ended=time.time()))
            return None
        except Exception as e:
            reason = (str(user_error(e) or e).strip() or type(e).__name__).splitlines()[-1][:300]
            log.warning("trial %s failed (%s)%s", name, reason, "; it is tried once more" if left else "")
            if not left:
                return reason
    run = Storage.open(config.storage).child("runs", name)
    adapter = run.child("adapter")
    facts = {
        "process_seconds": waited,
        **_of_training(run, started),
        "train_seconds": round(trained_at - started, 1),
        "score_seconds": round(time.time() - trained_at, 1),
        "adapter_mb": round(sum(adapter.size(file) for file in adapter.list() if file.startswith("pytorch_")) / 1e6, 2),
        "steps": trained["figures"]["steps"],
        **{key: scored[key] for key in ("windows", "generate_seconds", "measure_seconds")},
    }
    records.write(Record(name, trial, COMPLETE, scored["figures"], facts, time.time()))
    return None


def _of_training(run: Storage, started: float) -> dict[str, float]:
    """What a training's events say of its speed and memory.

    `start_seconds` is the time up to the first step: of processes, imports, model, data and the first held-out loss. It
    is missing where the training went on from a checkpoint.
    """
    events = training_steps(read_events(run))
    seconds = [event["step_seconds"] for event in events]
    first = events[0]["time"] - seconds[0]
    return {
        **({"start_seconds": round(first - started, 1)} if first > started else {}),
        "steps_seconds": round(sum(seconds), 1),
        "step_seconds": round(statistics.median(seconds), 4),
        "peak_memory_gb": round(max(event["peak_memory_gb"] for event in events), 2),
    }


def train_again(task: dict[str, Any]) -> None:
    """One training of the final comparison. Runs in a process of Tune's."""
    config = parse_config(TuneConfig, task["config"])
    train(training_of(config, Trial(Point.from_json(task["trial"]["point"]), task["trial"]["seed"])))
