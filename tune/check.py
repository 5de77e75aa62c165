"""What is checked of a study before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinesynth.config import TuneConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import ConfigError
from cinesynth.generate.held_out import chosen_windows
from cinesynth.locate import pin_adapter
from cinesynth.metrics.catalogue import metric_identity
from cinesynth.settings import differences
from cinesynth.storage import Storage, public_uri
from cinesynth.train.check import check_training
from cinesynth.wan.folder import pinned_model
from tune.records import Record, Records
from tune.scorer import scoring
from tune.space import Point, Trial, first_trials, training_of

_OF_THE_SEARCH = {
    "space",
    "objectives",
    "method",
    "grid_values",
    "asha",
    "points",
    "baseline_seeds",
    "final_seeds",
    "seed",
}
"""Fields that a study may have other than the one that warm-starts it."""


_OF_A_POINT = {"train.lora.rank", "train.lora.alpha", "train.lora.targets", "train.optimizer.lr", "train.flow.shift"}
"""Fields of the baseline that each trial has on record."""


@dataclass(frozen=True)
class Checked:
    """A study whose inputs were checked."""

    dataset: ClipsDataset
    inputs: dict[str, str]
    windows: int
    """Of the val split that trials are scored on."""
    earlier: dict[str, dict[str, Record]]
    """Trials of the studies that the sampler is to know, by study."""


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
    return Checked(checked.dataset, inputs, len(windows), _earlier(config, inputs))


def _earlier(config: TuneConfig, inputs: dict[str, str]) -> dict[str, dict[str, Record]]:
    """The trials of `warm_start`. Raises ConfigError for a study whose figures would not compare with this one's."""
    found = {}
    for name in config.warm_start:
        folder = Storage.open(config.storage).child("runs", name)
        if name == config.name or not folder.exists("run.json") or folder.read_json("run.json")["kind"] != config.kind:
            raise ConfigError(f"warm_start: there is no other study {name!r} in {public_uri(config.storage)}")
        recorded = folder.read_json("run.json")
        changed = [
            line
            for line in differences(recorded["identity"], config)
            if (key := line.split(":")[0]).split(".")[0] not in _OF_THE_SEARCH and key not in _OF_A_POINT
        ]
        changed += [
            f"inputs.{key}: recorded {recorded['inputs'].get(key)!r}, given {value!r}"
            for key, value in inputs.items()
            if recorded["inputs"].get(key) != value
        ]
        records = Records(folder).read()
        if not changed and not any(record.values(config.objectives) for record in records.values()):
            changed = [f"none of its trials has {' and '.join(config.objectives)}"]
        if changed:
            raise ConfigError(
                f"warm_start: figures of study {name!r} do not compare with those of {config.name!r} "
                f"({'; '.join(changed)}); leave it out, and give its best points as `points`"
            )
        found[name] = records
    return found


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
