"""The tune job: trials of a training on Ray Tune, a recommended one, and whether it beats the baseline."""

from __future__ import annotations

import csv
import io
import logging
import statistics
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from cinesynth.config import TuneConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import ConfigError, user_error
from cinesynth.generate.held_out import chosen_windows
from cinesynth.lease import Lease, held
from cinesynth.locate import pin_adapter
from cinesynth.metrics.catalogue import metric_identity
from cinesynth.metrics.record import MetricsRecord
from cinesynth.runs import Run, records_its_end
from cinesynth.session import check_room, interruptible, ray_session
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.check import check_training
from cinesynth.train.driver import train
from cinesynth.wan.folder import pinned_model
from tune.front import Values, front, hypervolume, recommend
from tune.page import is_shown, write_study_page
from tune.records import COMPLETE, FAILED, Record, Records
from tune.scorer import Scorer, scoring
from tune.search import StudySearch
from tune.space import Point, Trial, first_trials, make_sampler, training_of

log = logging.getLogger("cinesynth.tune")


@dataclass(frozen=True)
class Checked:
    """A study whose inputs were checked."""

    dataset: ClipsDataset
    inputs: dict[str, str]
    windows: int
    """Of the val split that trials are scored on."""


def check_study(config: TuneConfig) -> Checked:
    """Check space, stage, dataset and metrics. Raises CinesynthError; needs no Ray."""
    baselines, _ = first_trials(config)
    widest = max(config.space.rank or (baselines[0].point.rank,))
    for point in (baselines[0].point, Point(**{**vars(baselines[0].point), "rank": widest})):
        checked = check_training(training_of(config, Trial(point, config.train.seed)))
    windows = chosen_windows(checked.dataset, "val", config.max_windows, "tune")
    settings = scoring(config, windows)
    if config.final_seeds:
        chosen_windows(checked.dataset, "test", config.max_windows, "tune.final_seeds")
    inputs = checked.inputs | metric_identity(settings)
    return Checked(checked.dataset, inputs, len(windows))


@records_its_end
def tune_study(config: TuneConfig) -> dict[str, Any]:
    """Search, recommend and compare, from where a former try of this study stopped; returns the run's result.

    A complete study whose budget was raised goes on.
    """
    import ray

    config = settled(config)
    checked = check_study(config)
    run = Run.open(config, checked.inputs)
    if (done := run.result()) is not None and done["figures"]["trials"] >= config.budget.trials:
        log.info("study %s is complete; nothing to do", config.name)
        return done
    records = Records(run.folder)
    with held(run) as lease, ray_session(config):
        concurrency = _concurrency(config)
        task = {"config": config.model_dump(mode="json"), "dataset": checked.dataset.storage.reference()}
        gpu = config.train.use_gpu
        scorer: Any = (
            ray.remote(Scorer)
            .options(
                name=f"scorer of {config.name} {uuid.uuid4().hex[:6]}",
                num_cpus=0 if not gpu else 1,
                num_gpus=1 if gpu else 0,
                max_restarts=3,
                max_task_retries=3,
                **config.train.resources.options(1 if gpu else 0),
            )
            .remote(task)
        )
        try:
            base = _base_figures(run.folder, scorer, lease)
            tried = _search(config, run, records, base, scorer, concurrency, lease)
            found = outcome(config, records, base)
            final = _final(config, run, scorer, found, lease) if config.final_seeds else None
        finally:
            ray.kill(scorer)
    keeps = final is not None and not is_shown(final, config.objectives)
    chosen = found.baseline if keeps else found.recommended
    if keeps:
        log.info("the comparison on test shows no difference: the baseline is kept")
    outputs = {
        "adapter": Storage.open(config.storage).child("runs", chosen, "adapter").uri,
        "trials": _write_table(run.folder, config, records),
        "report": write_study_page(config, run, records, base, found, final),
    }
    figures: dict[str, Any] = {
        "trials": tried,
        "failed": sum(record.status == FAILED for record in records.read().values()),
        "hypervolume": found.hypervolume,
        "recommended": found.recommended,
        "delivered": chosen,
        "adapter_sha256": Storage.open(config.storage)
        .child("runs", chosen)
        .read_json("trained.json")["adapter_sha256"],
        **{f"recommended/{name}": value for name, value in found.point.to_json().items()},
    }
    return run.finish(outputs, figures)


@dataclass(frozen=True)
class Outcome:
    """What the trials of a study say.

    Attributes:
        values: both objectives by trial, of all that have them.
        front: trials that no other beats.
        baseline: the baseline's trial with the study's own seed.
        recommended: the trial to take.
        point: what that was trained with.
        noise: standard deviation of each objective over the baseline's seeds.
        hypervolume: of the front, below the base model's values.
    """

    values: dict[str, Values]
    front: list[str]
    baseline: str
    recommended: str
    point: Point
    noise: Values
    hypervolume: float


def outcome(config: TuneConfig, records: Records, base: dict[str, float]) -> Outcome:
    """The front and the recommendation. Raises ConfigError where no trial has both objectives."""
    known = records.read()
    values = {name: v for name, record in known.items() if (v := record.values(config.objectives)) is not None}
    if not values:
        reasons = "; ".join(f"{r.name}: {r.facts.get('reason')}" for r in list(known.values())[:3])
        raise ConfigError(f"study {config.name!r}: no trial has both objectives ({reasons})")
    seeds, _ = first_trials(config)
    baseline = seeds[0].name(config.name)
    of_baseline = [values[name] for trial in seeds if (name := trial.name(config.name)) in values]
    spread = [statistics.stdev(axis) if len(of_baseline) > 1 else 0.0 for axis in zip(*of_baseline, strict=True)]
    noise = (spread[0], spread[1]) if spread else (0.0, 0.0)
    # Other seeds of the baseline say how large the noise is; they are no points of the search.
    searched = {n: v for n, v in values.items() if known[n].trial.seed == config.train.seed}
    taken = recommend(searched, {name: known[name].trial.point.rank for name in searched}, noise)
    reference = base[config.objectives[0]], base[config.objectives[1]]
    area = hypervolume(list(searched.values()), reference)
    return Outcome(values, front(searched), baseline, taken, known[taken].trial.point, noise, area)


def run_trial(task: dict[str, Any]) -> None:
    """One trial: train, have it scored, and put it on record. Runs in a process of Tune's."""
    from ray import tune

    config = parse_config(TuneConfig, task["config"])
    trial = Trial(Point.from_json(task["point"]), task["seed"])
    name = trial.name(config.name)
    records = Records(Storage.open(config.storage).child("runs", config.name))
    if not records.holds(name):
        records_trial(config, trial, records, task["scorer"])
    record = records.read()[name]
    tune.report(record.figures)


def records_trial(config: TuneConfig, trial: Trial, records: Records, scorer: Any) -> None:
    """Train and score a trial; what goes wrong is put on record and raised."""
    import ray

    name = trial.name(config.name)
    started = time.time()
    try:
        trained = train(training_of(config, trial))
        trained_at = time.time()
        scored = ray.get(scorer.score.remote(name))
    except Exception as e:
        reason = str(user_error(e) or e).strip().splitlines()[-1][:300]
        records.write(Record(name, trial, FAILED, facts={"reason": reason}, ended=time.time()))
        raise
    adapter = Storage.open(config.storage).child("runs", name, "adapter")
    facts = {
        "train_seconds": round(trained_at - started, 1),
        "score_seconds": round(time.time() - trained_at, 1),
        "adapter_mb": round(sum(adapter.size(file) for file in adapter.list() if file.startswith("pytorch_")) / 1e6, 2),
        "steps": trained["figures"]["steps"],
        **{key: scored[key] for key in ("windows", "generate_seconds", "measure_seconds")},
    }
    records.write(Record(name, trial, COMPLETE, scored["figures"], facts, time.time()))


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
    study.set_metric_names(list(config.objectives))
    return study


def _search(
    config: TuneConfig, run: Run, records: Records, base: dict[str, float], scorer: Any, concurrency: int, lease: Lease
) -> int:
    """Run trials until the budget is spent; returns how many points the study has tried."""
    from ray import tune
    from ray.util.metrics import Gauge

    started = time.monotonic()
    gauges = {
        name: Gauge(f"cinesynth_tune_{name}", told, ("study",))
        for name, told in (("trials", "trials that ended"), ("hypervolume", "below the base model's values"))
    }

    def tell() -> None:
        known = records.read()
        values = [v for record in known.values() if (v := record.values(config.objectives)) is not None]
        if not values:
            return
        wanted = config.budget.trials + config.baseline_seeds - 1
        eta = (time.monotonic() - started) / len(known) * max(0, wanted - len(known))
        best = ", ".join(
            f"{name} {min(axis):.4f}" for name, axis in zip(config.objectives, zip(*values, strict=True), strict=True)
        )
        area = hypervolume(values, (base[config.objectives[0]], base[config.objectives[1]]))
        for name, value in (("trials", len(known)), ("hypervolume", area)):
            gauges[name].set(value, {"study": config.name})
        log.info("%d/%d trials  best %s  hypervolume %.4g  ETA %.0f s", len(known), wanted, best, area, eta)

    study = open_study(config, run)
    searcher = StudySearch(config, study, records, tell)
    task = {"config": config.model_dump(mode="json"), "scorer": scorer}
    trainable = tune.with_resources(tune.with_parameters(_of_tune, task=task), {"cpu": 0.01})
    state = run.folder.child("ray").posix_path("a study")
    run.folder.delete_folder("ray")
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=concurrency),
        run_config=tune.RunConfig(
            name=config.name,
            storage_path=str(state),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    try:
        interruptible(tuner.fit, lease.check)
    finally:
        run.folder.delete_folder("ray")
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def _of_tune(point_and_seed: dict[str, Any], task: dict[str, Any]) -> None:
    run_trial({**task, **point_and_seed})


def _base_figures(folder: Storage, scorer: Any, lease: Lease) -> dict[str, float]:
    """Figures of the base model: the reference point of the hypervolume."""
    import ray

    if not folder.exists("base.json"):
        folder.write_json("base.json", interruptible(lambda: ray.get(scorer.score.remote(None)), lease.check))
    figures: dict[str, float] = folder.read_json("base.json")["figures"]
    return figures


def _final(config: TuneConfig, run: Run, scorer: Any, found: Outcome, lease: Lease) -> MetricsRecord | None:
    """The recommended point, trained anew, against the baseline, trained anew, on the test split.

    None where the recommended point is the baseline itself.
    """
    import ray

    baseline = Point.of(config.train)
    if found.point == baseline:
        return None
    file = f"final-{found.recommended}.json"
    if not run.folder.exists(file):
        first = config.train.seed + config.baseline_seeds
        seeds = list(range(first, first + config.final_seeds))
        runs: dict[str, list[tuple[str, int]]] = {"baseline": [], "recommended": []}
        for arm, point in (("baseline", baseline), ("recommended", found.point)):
            for seed in seeds:
                trial = Trial(point, seed)
                train(training_of(config, trial))
                lease.check()
                runs[arm].append((trial.name(config.name), seed))
        run.folder.write_json(file, interruptible(lambda: ray.get(scorer.final.remote(runs)), lease.check))
    return MetricsRecord.parse(run.folder.read_json(file), run.folder.uri)


def _concurrency(config: TuneConfig) -> int:
    """Trials at once: what was asked for, or as many as the cluster holds. Raises ConfigError where it holds none."""
    stage = config.train
    gpus = 1.0 if stage.use_gpu else 0.0

    def fits(trials: int) -> bool:
        scorer = 1 if stage.use_gpu else 0
        try:
            check_room(trials * stage.workers + scorer, stage.cpus_per_worker, gpus, stage.resources)
        except ConfigError:
            return False
        return True

    if not fits(1):
        check_room(stage.workers + (1 if stage.use_gpu else 0), stage.cpus_per_worker, gpus, stage.resources)
    if config.concurrency is not None:
        return config.concurrency
    most = 1
    while most < config.budget.trials and fits(most + 1):
        most += 1
    return most


def _write_table(folder: Storage, config: TuneConfig, records: Records) -> str:
    """Write `trials.csv`; returns its uri."""
    known = records.read()
    metrics = sorted({name for record in known.values() for name in record.figures})
    facts = ["windows", "steps", "adapter_mb", "train_seconds", "score_seconds", "reason"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["run", "status", "rank", "alpha", "lr", "shift", "targets", "seed", *metrics, *facts])
    for record in known.values():
        point = record.trial.point
        targets = point.targets if isinstance(point.targets, str) else "+".join(point.targets)
        rows.writerow(
            [record.name, record.status, point.rank, point.alpha, point.lr, point.shift, targets, record.trial.seed]
            + [record.figures.get(name, "") for name in metrics]
            + [record.facts.get(name, "") for name in facts]
        )
    folder.write_text("trials.csv", text.getvalue())
    return folder.child("trials.csv").uri


def settled(config: TuneConfig) -> TuneConfig:
    """The configuration with absolute paths: Tune changes the working folder of its trials."""
    opened = Storage.open(config.storage)
    paths: dict[str, Any] = {
        "storage": str(opened.posix_path("a study")) if opened.is_local else config.storage,
        "model": pinned_model(config.model),
    }
    for name in ("model", "dataset", "r_lpips_weights"):
        given = paths.get(name, getattr(config, name))
        if given is not None and ("/" in given or name == "r_lpips_weights") and Path(given).expanduser().exists():
            paths[name] = str(Path(given).expanduser().absolute())
    parents = [
        parent.model_copy(update={"ref": pin_adapter(Storage.open(config.storage), parent.ref)})
        for parent in config.train.parents
    ]
    return config.model_copy(update={**paths, "train": config.train.model_copy(update={"parents": parents})})
