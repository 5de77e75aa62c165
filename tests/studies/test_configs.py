"""The shipped configurations of the studies, and the command line that names one."""

from __future__ import annotations

from typing import Any

import pytest

from cinesynth.config import PrepareConfig
from cinesynth.errors import ConfigError
from cinesynth.settings import load_config, parse_config
from cinesynth.studies.config import STUDIES, StudyConfig
from jobs.study import overrides_of
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "jobs" / "configs"
OF_THE_MODEL = {
    "full.lr",
    "generate.sampler.guidance_scale",
    "generate.sampler.steps",
    "train.dtype",
    "train.optimizer.lr",
    "train.optimizer.steps",
}
"""A model's recipe: its learning rates, dtype, how long it trains, and how its videos are sampled."""


def shipped(scale: str, study: str = "rank_quality") -> StudyConfig:
    return load_config(StudyConfig, str(CONFIGS / scale / "study.yaml"), [f"study={study}"])


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= leaves(item, f"{key}.{name}" if key else name)
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_the_large_model_has_the_same_grid(study: str) -> None:
    """Identity leaves model, datasets and resources out."""
    nano, large = (leaves(shipped(scale, study).identity()) for scale in ("nano", "wan14b"))
    assert nano.keys() == large.keys()
    assert {key for key in nano if nano[key] != large[key]} == OF_THE_MODEL
    assert nano["train.optimizer.steps"] == 60
    assert (nano["ranks"], nano["seeds"]) == ([4, 8, 32], [0, 1])


def test_the_datasets_are_those_that_the_shipped_configurations_prepare() -> None:
    config = shipped("nano")
    made = {p.stem: load_config(PrepareConfig, str(p)) for p in (CONFIGS / "nano").glob("prepare-*.yaml")}
    assert {c.name for c in made.values()} == {*config.domains.values(), config.long}
    assert made["prepare-long"].window.num_frames == [129]
    assert {name: c.footage[0].domain for name, c in made.items()} == {
        "prepare-historical": config.home,
        "prepare-sci-fi": config.away,
        "prepare-long": config.home,
    }


def test_the_first_word_names_the_study() -> None:
    assert overrides_of(["rank_motion", "--config", "c.yaml", "a=b"]) == [
        "--config",
        "c.yaml",
        "a=b",
        "study=rank_motion",
    ]
    assert overrides_of(["--help"]) == ["--help"]
    assert overrides_of(["study=x"]) == ["study=x"]
    with pytest.raises(SystemExit, match=r"name a study first.*known are rank_quality, domain_shift"):
        overrides_of(["--config", "c.yaml"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "rank_qualty"}, "is not a study; did you mean 'rank_quality'. known are rank_quality, domain_shift"),
        ({"domains": {"a": "x"}}, "give two, the one that is trained on first"),
        ({"domains": {"a": "x", "b": "x"}}, "has one dataset twice"),
        ({"ranks": [4, 4]}, "holds a value twice"),
        ({"lr_factors": [0.5, 2]}, "lacks 1, the fixed learning rate"),
        ({"generate": {"shots": [{"image": "a.png", "prompt": "p"}]}}, "set it to test"),
        ({"generate": {"split": "test", "adapters": [{"ref": "a"}]}}, "leave them out"),
        ({"train": {"mode": "full"}}, "train needs mode lora"),
    ],
)
def test_what_is_no_study_is_refused(change: dict[str, Any], message: str) -> None:
    given = shipped("nano").model_dump(mode="json") | change
    with pytest.raises(ConfigError, match=message):
        parse_config(StudyConfig, given)
