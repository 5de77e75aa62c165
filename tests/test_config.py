"""Configuration: what is wrong is refused with its key, value and what is allowed; identity excludes runtime fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import EvaluateConfig, GenerateConfig, PipelineConfig, PrepareConfig, TrainConfig
from cinesynth.errors import ConfigError
from cinesynth.settings import differences, load_config, parse_config

CONFIGS = Path(__file__).parent.parent / "jobs" / "configs"
STYLE = str(CONFIGS / "nano" / "style.yaml")
PREPARE = str(CONFIGS / "nano" / "prepare.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.rnak=4"], r"lora\.rnak: unknown key; did you mean 'rank'\?"),
        (["lora.rank=0"], r"lora\.rank = 0: input should be greater than or equal to 1"),
        (["lora.rank=eight"], r"lora\.rank = 'eight': input should be a valid integer"),
        (["optimizer.lr=.nan"], r"optimizer\.lr = nan: input should be a finite number"),
        (["optimizer.batch_size=3", "workers=2"], r"batch_size 3 does not divide by workers 2"),
        (["validation.sigmas=[0.5,1.5]"], r"sigmas holds 1\.5; every noise level lies in \(0, 1\]"),
        (["strategy=zero9"], r"strategy = 'zero9': input should be 'auto', 'replicate' or 'fsdp2'"),
        (["name=Bad Name"], r"name = 'Bad Name'"),
        (["lora.rank"], r"override 'lora\.rank' is not of the form key=value"),
    ],
)
def test_a_bad_training_option_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, STYLE, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["window.num_frames=18"], r"window\.num_frames\.0 = 18: must be 4n\+1"),
        (["window.sizes=100x64"], r"window\.sizes\.0 = '100x64': is a table .* in multiples of 16"),
        (["split.val=0.6", "split.test=0.5"], r"leaves nothing to train on"),
    ],
)
def test_a_bad_prepare_option_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PrepareConfig, PREPARE, overrides)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError, match="2 problems") as e:
        load_config(TrainConfig, STYLE, ["lora.rank=0", "optimizer.steps=0"])
    assert "lora.rank" in str(e.value)
    assert "optimizer.steps" in str(e.value)


def test_a_missing_footage_folder_is_named(tmp_path: Path) -> None:
    config = load_config(PrepareConfig, PREPARE, [f"footage=[{{path: '{tmp_path}/nowhere'}}]"])
    with pytest.raises(ConfigError, match=r"footage\.0\.path: '.*/nowhere' does not exist"):
        config.check_inputs()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(TrainConfig, str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("lora: {rank: 3")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(TrainConfig, str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected keys and values"):
        load_config(TrainConfig, str(tmp_path / "list.yaml"))


def test_overrides_reach_into_lists_and_read_numbers() -> None:
    config = load_config(PrepareConfig, PREPARE, ["footage.0.path=/some where/else", "window.num_frames=33"])
    assert config.footage[0].path == "/some where/else"
    assert len(config.footage) > 1
    assert load_config(TrainConfig, STYLE, ["optimizer.lr=3e-5"]).optimizer.lr == 3e-5


def test_identity_holds_what_changes_the_result_only() -> None:
    config = load_config(TrainConfig, STYLE)
    same = load_config(TrainConfig, STYLE, ["workers=2", "strategy=fsdp2", "micro_batch=1", "storage=/x", "name=other"])
    other = load_config(TrainConfig, STYLE, ["lora.rank=4"])
    assert config.identity() == same.identity()
    assert differences(config.identity(), other.identity()) == ["lora.rank: recorded 32, given 4"]


def test_generation_takes_one_source() -> None:
    values: dict[str, Any] = {"name": "g"}
    with pytest.raises(ConfigError, match="give either shots"):
        parse_config(GenerateConfig, values)
    with pytest.raises(ConfigError, match="needs dataset"):
        parse_config(GenerateConfig, {**values, "split": "test"})


def _class_of(path: Path) -> Any:
    by_name = {"prepare": PrepareConfig, "pipeline": PipelineConfig, "generate": GenerateConfig}
    return {**by_name, "evaluate": EvaluateConfig, "style": TrainConfig}[path.stem]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    load_config(_class_of(path), str(path))
