"""Which earlier studies a search may learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from tests.tiny_dataset import encoded_dataset
from tune.check import check_study
from tune.outline import outline_study
from tune.records import COMPLETE, Record, Records
from tune.space import Point, Trial


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a dataset, and a study of one trial."""
    folder = tmp_path_factory.mktemp("studies")
    encoded_dataset(Storage.open(folder / "datasets" / "clips"), "nano", ("train", "val", "test"))
    old = config(folder, name="old")
    run = Run.open(old, check_study(old).inputs)
    trial = Trial(Point.of(old.train), 0)
    figures = {"lpips": 0.1, "lpips_late": 0.2}
    Records(run.folder).write(Record(trial.name("old"), trial, COMPLETE, figures, ended=1.0))
    return folder


def config(storage: Path, **changes: Any) -> TuneConfig:
    values: dict[str, Any] = {
        "name": "new",
        "storage": str(storage),
        "dataset": "clips",
        "train": {"lora": {"rank": 4, "alpha": 4}, "optimizer": {"steps": 2, "lr": 1e-3}},
        "space": {"rank": [2, 8], "alpha_over_rank": None, "lr": [1e-4, 1e-2]},
        "objectives": ["lpips", "lpips_late"],
    }
    return parse_config(TuneConfig, {**values, **changes})


def test_a_study_of_the_same_stage_and_scoring_is_known(storage: Path) -> None:
    other = config(
        storage,
        warm_start=["old"],
        space={"rank": [2, 16], "alpha_over_rank": [0.5, 2], "lr": [1e-5, 1e-2]},
        objectives=["lpips_late", "lpips"],
        method="random",
        train={"lora": {"rank": 8, "alpha": 8}, "optimizer": {"steps": 2, "lr": 2e-3}},
        seed=7,
    )
    assert [len(records) for records in check_study(other).earlier.values()] == [1]
    assert "random, with what old found" in outline_study(other).text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_start": ["nothing"]}, "there is no other study 'nothing'"),
        ({"warm_start": ["new"]}, "there is no other study 'new'"),
        ({"sampler": {"steps": 9}}, r"sampler\.steps: recorded .*, given 9\); leave it out"),
        ({"train": {"optimizer": {"steps": 3, "lr": 1e-3}, "lora": {"rank": 4}}}, r"train\.optimizer\.steps"),
        ({"max_windows": 1}, "max_windows"),
    ],
)
def test_figures_that_do_not_compare_are_refused(storage: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_study(config(storage, **{"warm_start": ["old"], **changes}))
