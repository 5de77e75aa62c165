"""What a training refuses before a worker starts: another model's dataset, and parents that do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import TrainConfig
from cinesynth.errors import AdapterError, DatasetError
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.train.check import Checked, check_training
from cinesynth.train.outline import outline_training
from cinesynth.wan.folder import base_hash, encoder_hash
from tests.adapters import adapter_folder
from tests.tiny_dataset import encoded_dataset


def config(storage: Path, **changes: Any) -> TrainConfig:
    return parse_config(TrainConfig, {"name": "noir", "storage": str(storage), "dataset": "d", **changes})


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the dataset `d`."""
    storage = tmp_path_factory.mktemp("encoded")
    encoded_dataset(Storage.open(storage / "datasets" / "d"), "nano")
    return storage


@pytest.fixture
def check(encoded: Path, tmp_path: Path) -> Callable[..., Checked]:
    """Checks a training on top of these adapters of the test's folder."""
    return lambda *names: check_training(config(encoded, parents=[{"ref": str(tmp_path / name)} for name in names]))


def test_a_dataset_of_other_encoders_is_refused_with_both(encoded: Path) -> None:
    made = Storage.open(encoded).child("datasets", "d").read_json("manifest.json")
    Storage.open(encoded).child("datasets", "foreign").write_json("manifest.json", made | {"encoder_hash": "fe" * 32})
    told = rf"'foreign' .*\({'fe' * 6}\) than those of 'nano' \({encoder_hash('nano')[:12]}\); .* model=nano"
    with pytest.raises(DatasetError, match=told):
        check_training(config(encoded, dataset="foreign"))


def test_a_parent_of_another_base_is_refused_with_both(check: Callable[..., Checked], tmp_path: Path) -> None:
    adapter_folder(tmp_path / "elsewhere", "ba" * 32, [])
    told = rf"elsewhere was trained on base other \({'ba' * 6}\), not on this one \({base_hash('nano')[:12]}\)"
    with pytest.raises(AdapterError, match=told):
        check("elsewhere")


def test_a_parent_comes_with_its_own_parents(check: Callable[..., Checked], tmp_path: Path) -> None:
    base = base_hash("nano")
    style, other = (adapter_folder(tmp_path / name, base, []) for name in ("style", "other"))
    motion = adapter_folder(tmp_path / "motion", base, [style])
    checked = check("style", "motion")
    assert (checked.inputs["parent_0"], checked.inputs["parent_1"]) == (style.sha256, motion.sha256)
    with pytest.raises(AdapterError, match=rf"motion' was trained .* \({style.sha256[:12]}\), which is neither a run"):
        check("motion")
    hashes = [parent.sha256[:12] for parent in (style, other)]
    told = re.escape("on top of [{} x 1.0]; before it comes [{} x 1.0]".format(*hashes))
    with pytest.raises(AdapterError, match=f"motion was trained {told}"):
        check("other", "motion")


def test_a_plan_has_the_memory_of_a_step(encoded: Path) -> None:
    memory = check_training(config(encoded)).memory
    assert memory.weights > 0
    lines = outline_training(config(encoded)).text().splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["memory"])
    assert line.split(maxsplit=1)[1] == f"{memory.told()} on a device that holds a whole copy, estimated"
    assert f"weights {memory.weights / 1e6:.1f} MB + trained values and gradients " in line
