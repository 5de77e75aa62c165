"""The tune job: trials of a training on Ray Tune, a recommended one, and whether it beats the baseline."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from cinesynth.config import TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.lease import Lease, held
from cinesynth.metrics.record import MetricsRecord
from cinesynth.runs import Run, complete_result, read_result, records_its_end
from cinesynth.session import check_room, interruptible, ray_session
from cinesynth.storage import Storage
from cinesynth.telemetry import Telemetry
from cinesynth.train.failures import Failures
from tune.check import Checked, check_study, settled
from tune.front import hypervolume
from tune.outcome import Outcome, outcome
from tune.page import is_shown, write_study_page
from tune.records import COMPLETE, CUT, FAILED, Records
from tune.scorer import Scorer
from tune.search import StudySearch
from tune.space import Point, Trial, make_sampler, wanted_points
from tune.trial import run_trial, train_again

log = logging.getLogger("cinesynth.tune")


@records_its_end
def tune_study(config: TuneConfig) -> dict[str, Any]:
    """Search, recommend and compare, from where a former try of this study stopped; returns the run's result.

    A complete study whose budget was raised goes on.
    """
    import ray

    config = settled(config)
    checked = check_study(config)
    run = Run.open(config, checked.inputs)
    if (done := run.result()) is not None and done["figures"]["trials"] >= wanted_points(config):
        log.info("study %s is complete; nothing to do", config.name)
        return done
    records = Records(run.folder)
    with held(run) as lease, ray_session(config):
        concurrency = trials_at_once(config)
        task = {"config": config.model_dump(mode="json"), "dataset": checked.dataset.storage.reference()}
        gpu = config.train.use_gpu
        scorer: Any = (
            ray.remote(Scorer)
            .options(
                name=f"scorer of {config.name} {uuid.uuid4().hex[:6]}",
                num_cpus=0 if not gpu else 1,
                num_gpus=1 if gpu else 0,
                max_restarts=-1,  # nodes die during a long search; what a trial may cost it is limited by the retries
                max_task_retries=3,
                **config.train.resources.options(1 if gpu else 0),
            )
            .remote(task)
        )
        try:
            base = _base_figures(run.folder, scorer, lease)
            tried = _search(config, run, checked, base, scorer, concurrency, lease)
            found = outcome(config, records, base)
            final = _final(config, run, scorer, found, concurrency, lease) if config.final_seeds else None
        finally:
            ray.kill(scorer)
    if found.baseline is None:
        log.warning("there is no baseline to compare with (%s): the recommended trial is delivered", found.no_baseline)
    chosen = delivered_trial(config, found, final)
    if chosen != found.recommended:
        log.info("the comparison on test shows no difference: the baseline is kept")
    outputs = {
        "adapter": Storage.open(config.storage).child("runs", chosen, "adapter").uri,
        "trials": _write_table(run.folder, config, records),
        "report": write_study_page(config, run, records, base, found, final),
    }
    figures: dict[str, Any] = {
        "trials": tried,
        **{status: sum(r.status == status for r in records.read().values()) for status in (FAILED, CUT)},
        "hypervolume": found.hypervolume,
        "recommended": found.recommended,
        "delivered": chosen,
        "adapter_sha256": Storage.open(config.storage)
        .child("runs", chosen)
        .read_json("trained.json")["adapter_sha256"],
        **{f"recommended/{name}": value for name, value in found.point.to_json().items()},
    }
    return run.finish(outputs, figures, records.left_out())


def delivered_trial(config: TuneConfig, found: Outcome, final: MetricsRecord | None) -> str:
    """The trial whose adapter is delivered: the baseline's where the comparison does not show the recommended one to be
    better.
    """
    if found.baseline is None or final is None or is_shown(final, config.objectives):
        return found.recommended
    return found.baseline


def open_study(config: TuneConfig, run: Run) -> optuna.Study:
    """Optuna's study: a journal in the run's folder, or the storage that `storage_url` names."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage: Any = config.storage_url
    if storage is None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path = run.folder.posix_path("Optuna's journal (or set storage_url)") / "optuna.log"
        storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=storage, study_name=config.name, directions=["minimize", "minimize"], load_if_exists=True
    )
    study.sampler = make_sampler(config, len(study.get_trials(deepcopy=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(config.objectives))
    return study


def _search(
    config: TuneConfig, run: Run, checked: Checked, base: dict[str, float], scorer: Any, concurrency: int, lease: Lease
) -> int:
    """Run trials until the budget is spent; returns how many points the study has tried."""
    records = Records(run.folder)
    started, before = time.monotonic(), len(records.read())
    wanted = wanted_points(config) + config.baseline_seeds - 1

    def tell() -> None:
        known = records.read()
        values = [v for record in known.values() if (v := record.values(config.objectives)) is not None]
        if not values:
            return
        eta = (time.monotonic() - started) / max(1, len(known) - before) * max(0, wanted - len(known))
        lowest = {name: min(axis) for name, axis in zip(config.objectives, zip(*values, strict=True), strict=True)}
        best = ", ".join(f"{name} {value:.4f}" for name, value in lowest.items())
        area = hypervolume(values, (base[config.objectives[0]], base[config.objectives[1]]))
        show_search(config.name, [record.status for record in known.values()], wanted, lowest, area, eta)
        log.info("%d/%d trials  best %s  hypervolume %.4g  ETA %.0f s", len(known), wanted, best, area, eta)

    searcher = StudySearch(config, open_study(config, run), records, tell, checked.earlier)
    task = {"config": config.model_dump(mode="json"), "scorer": scorer}
    _on_tune(run_trial, task, run.folder, lease, search_alg=searcher, num_samples=-1, max_concurrent_trials=concurrency)
    searcher.close()
    return sum(record.trial.seed == config.train.seed for record in records.read().values())


def show_search(
    study: str, ended: Sequence[str], wanted: int, lowest: Mapping[str, float], area: float, eta_s: float
) -> None:
    """Show where a search stands, for Prometheus.

    Args:
        study: its name.
        ended: status of each trial that ended.
        wanted: trials of the whole search.
        lowest: objective to the best value that was found.
        area: the hypervolume.
        eta_s: seconds left.
    """
    telemetry = Telemetry(study=study)
    for state in (COMPLETE, FAILED, CUT):
        telemetry.set("cinesynth_tune_trials", ended.count(state), state=state)
    telemetry.set("cinesynth_tune_trials_wanted", wanted)
    for name, value in lowest.items():
        telemetry.set("cinesynth_tune_best", value, objective=name)
    telemetry.set("cinesynth_tune_hypervolume", area)
    telemetry.set("cinesynth_tune_remaining_seconds", eta_s)


def _on_tune(
    function: Callable[[dict[str, Any]], None],
    task: dict[str, Any],
    folder: Storage,
    lease: Lease,
    param_space: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Have Tune call a function with the task and each trial's own values. A process that is lost is the caller's."""
    from ray import tune

    def of_tune(values: dict[str, Any], task: dict[str, Any]) -> None:
        function({**task, **values})

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune tells of its own folders, however quiet it is to be
    trainable = tune.with_resources(tune.with_parameters(of_tune, task=task), {"cpu": 0.01})
    state = folder.child("ray").posix_path("a study")
    folder.delete_folder("ray")
    tuner = tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(reuse_actors=True, **settings),  # a process starts for a fifth of a nano trial
        run_config=tune.RunConfig(name=Path(folder.path).name, storage_path=str(state), verbose=0),
    )
    try:
        interruptible(tuner.fit, lease.check)
    finally:
        folder.delete_folder("ray")


def _base_figures(folder: Storage, scorer: Any, lease: Lease) -> dict[str, float]:
    """Figures of the base model: the reference point of the hypervolume."""
    import ray

    if not folder.exists("base.json"):
        folder.write_json("base.json", interruptible(lambda: ray.get(scorer.score.remote(None)), lease.check))
    figures: dict[str, float] = folder.read_json("base.json")["figures"]
    return figures


def _final(
    config: TuneConfig, run: Run, scorer: Any, found: Outcome, concurrency: int, lease: Lease
) -> MetricsRecord | None:
    """The recommended point, trained anew, against the baseline, trained anew, on the test split.

    None where the recommended point is the baseline itself, or no training of the baseline came to a score.
    """
    import ray
    from ray import tune

    baseline = Point.of(config.train)
    if found.baseline is None or found.point == baseline:
        return None
    file = f"final-{found.recommended}.json"
    if not run.folder.exists(file):
        first = config.train.seed + config.baseline_seeds
        seeds = list(range(first, first + config.final_seeds))
        arms = {"baseline": baseline, "recommended": found.point}
        trials = [Trial(point, seed) for seed in seeds for point in arms.values()]
        log.info("%d trainings with new seeds compare the recommended point with the baseline", len(trials))
        storage = Storage.open(config.storage)
        left = {trial.name(config.name): trial for trial in trials}
        losses = {name: Failures(storage.child("runs", name), config.train.max_failures) for name in left}
        while left:
            given = [{"point": trial.point.to_json(), "seed": trial.seed} for trial in left.values()]
            task, space = {"config": config.model_dump(mode="json")}, {"trial": tune.grid_search(given)}
            _on_tune(train_again, task, run.folder, lease, space, max_concurrent_trials=concurrency)
            left = {n: trial for n, trial in left.items() if complete_result(storage.child("runs", n)) is None}
            for name in left:
                if not losses[name].another():
                    read_result(storage, name)  # tells how it failed
                log.warning("training %s did not end; it goes on (%s)", name, losses[name])
        runs = {arm: [(Trial(point, seed).name(config.name), seed) for seed in seeds] for arm, point in arms.items()}
        run.folder.write_json(file, interruptible(lambda: ray.get(scorer.final.remote(runs)), lease.check))
    return MetricsRecord.parse(run.folder.read_json(file), run.folder.uri)


def trials_at_once(config: TuneConfig) -> int:
    """As many trials as the connected cluster holds beside the scorer, and no more than `concurrency`.

    Raises ConfigError, with the arithmetic, where it holds none: Ray would wait for ever.
    """
    stage = config.train
    scorer = 1 if stage.use_gpu else 0
    gpus = 1.0 if stage.use_gpu else 0.0
    most = config.concurrency or config.budget.trials
    for trials in range(1, most + 1):
        try:
            check_room(trials * stage.workers + scorer, stage.cpus_per_worker, gpus, stage.resources)
        except ConfigError as e:
            if trials == 1:
                raise ConfigError(f"a trial takes {stage.workers} workers, and the scorer {scorer}: {e}") from e
            if config.concurrency is not None:
                log.info("%d trials at once: the cluster holds no more beside the scorer", trials - 1)
            return trials - 1
    return most


def _write_table(folder: Storage, config: TuneConfig, records: Records) -> str:
    """Write `trials.csv`; returns its uri."""
    known = records.read()
    metrics = sorted({name for record in known.values() for name in record.figures})
    facts = ["windows", "steps", "adapter_mb", "step_seconds", "peak_memory_gb", "train_seconds", "score_seconds"]
    facts += ["reason"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["run", "status", "rank", "alpha", "lr", "shift", "targets", "seed", *metrics, *facts, "page"])
    for record in known.values():
        point = record.trial.point
        targets = point.targets if isinstance(point.targets, str) else "+".join(point.targets)
        rows.writerow(
            [record.name, record.status, point.rank, point.alpha, point.lr, point.shift, targets, record.trial.seed]
            + [record.figures.get(name, "") for name in metrics]
            + [record.facts.get(name, "") for name in facts]
            + [f"../{record.name}/report.html"]
        )
    folder.write_text("trials.csv", text.getvalue())
    return folder.child("trials.csv").uri
