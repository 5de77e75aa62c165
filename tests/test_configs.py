"""The shipped configurations for Wan2.1-I2V-14B chain as they stand: each is planned on what those before it leave.

A folder with the same layout, nano's, stands in the hub id's place.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import (
    EvaluateConfig,
    GenerateConfig,
    JobConfig,
    PipelineConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
)
from cinesynth.data.outline import outline_prepare
from cinesynth.data.video import write_video
from cinesynth.errors import AdapterError, ConfigError, DatasetError
from cinesynth.generate.outline import outline_generation
from cinesynth.metrics.outline import outline_evaluation
from cinesynth.outline import Outline
from cinesynth.pipeline import outline_pipeline
from cinesynth.runs import Run
from cinesynth.settings import load_config
from cinesynth.storage import Storage
from cinesynth.train.outline import outline_training
from cinesynth.wan.adapter import save_adapter
from cinesynth.wan.card import AdapterCard, Parent
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash
from cinesynth.wan.load import load_transformer
from cinesynth.wan.lora import add_lora
from tests.adapters import adapter_state
from tests.conftest import REPOSITORY
from tests.tiny_dataset import encoded_dataset, model_and_footage, picture
from tune.outline import outline_study

CONFIGS = REPOSITORY / "jobs" / "configs"
POOL = "on A100-80G"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, footage, and a storage with the dataset that `prepare.yaml` names."""
    folder = model_and_footage(tmp_path_factory.mktemp("chain"))
    encoded_dataset(
        Storage.open(folder / "storage" / "datasets" / "wan14b-clips"), str(folder / "model"), ("train", "val", "test")
    )
    return folder


def shipped(cls: type[JobConfig], name: str, folder: Path, *changes: str) -> Any:
    overrides = [f"storage={folder / 'storage'}", *changes]
    if cls is not EvaluateConfig:
        overrides.append(f"model={folder / 'model'}")
    return load_config(cls, str(CONFIGS / "wan14b" / f"{name}.yaml"), overrides)


def plan(outline: Callable[[Any], Outline], cls: type[JobConfig], name: str, folder: Path, *changes: str) -> str:
    return outline(shipped(cls, name, folder, *changes)).text()


def finish(config: TrainConfig, parents: list[Parent]) -> Parent:
    """The run of a training, as if it had been trained."""
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, config.lora.rank, config.lora.alpha, config.lora.targets, 0)
    state = {k: v + 0.01 for k, v in adapter_state(transformer).items()}
    run = Run.open(config, {})
    card = AdapterCard(
        base_model=config.model,
        base_sha256=base_hash(config.model),
        parents=parents,
        stage=config.stage,
        dataset=config.dataset,
        dataset_sha256="0",
        config={},
        step=1,
    )
    adapter = run.folder.posix_path("a test") / "adapter"
    sha256 = save_adapter(adapter, state, transformer.peft_config["default"], card).sha256
    run.folder.write_json("trained.json", {"adapter_sha256": sha256})
    run.finish({"adapter": str(adapter)}, {})
    return Parent(sha256=sha256, scale=1.0)


def test_each_job_is_planned_on_what_those_before_it_leave(folder: Path) -> None:
    prepare = plan(outline_prepare, PrepareConfig, "prepare", folder, f"footage.0.path={folder / 'footage'}")
    assert "prepare wan14b-clips: new" in prepare
    assert "A100-80G" in prepare

    style = shipped(TrainConfig, "style", folder)
    told = outline_training(style).text()
    assert "1 to train on, 1 held out" in told
    assert "attn2.to_q" in told
    assert "attn1" not in told
    assert "early stop" in told
    assert f"4 of 8 CPUs and 1 GPUs each, {POOL}" in told
    with pytest.raises(AdapterError, match="wan14b-style"):
        plan(outline_training, TrainConfig, "motion", folder)

    parents = [finish(style, [])]
    motion = shipped(TrainConfig, "motion", folder)
    told = outline_training(motion).text()
    assert f"wan14b-style x 1 ({parents[0].sha256[:12]})" in told
    assert "attn1.to_q" in told
    assert "attn2" not in told

    with pytest.raises(AdapterError, match="wan14b-motion"):
        plan(outline_generation, GenerateConfig, "generate", folder)
    finish(motion, parents)
    told = plan(outline_generation, GenerateConfig, "generate", folder)
    assert "1 window in base and style and style-motion" in told
    assert f"{POOL}" in told

    arms = [folder / "videos" / arm for arm in ("base", "style", "style-motion")]
    for arm in arms:
        arm.mkdir(parents=True)
        write_video(arm / f"{2:064x}.mkv", picture(1, 5), codec="ffv1")
    told = plan(outline_evaluation, EvaluateConfig, "evaluate", folder, *(f"arms.{arm.name}={arm}" for arm in arms))
    assert "split test: those of 1 window that arms have" in told
    assert f"{POOL}" in told


def test_a_search_is_planned(folder: Path) -> None:
    """The shipped one searches by R-LPIPS, which needs its weights; windows of five frames are too short for FVD."""
    path = CONFIGS / "wan14b" / "tune.yaml"
    with pytest.raises(ConfigError, match="set r_lpips_weights to the file"):
        load_config(TuneConfig, str(path), [f"storage={folder / 'storage'}"])
    weights = Path(str(find_spec("lpips").origin)).parent / "weights" / "v0.1" / "alex.pth"  # type: ignore[union-attr]
    changes = (f"r_lpips_weights={weights}", "objectives=[lpips, r_lpips]")
    told = plan(outline_study, TuneConfig, "tune", folder, *changes)
    assert "24 trials + 2 more of the baseline + 6 of the comparison = 32, 64,000 steps at most" in told
    assert f"3 of 8 CPUs and 1 GPUs each, {POOL}" in told
    with pytest.raises(DatasetError, match="need"):
        plan(outline_study, TuneConfig, "tune", folder, changes[0])
    with pytest.raises(ConfigError, match="above the width"):
        plan(outline_study, TuneConfig, "tune", folder, *changes, "space.rank=[8, 1024]", "space.alpha_over_rank=null")


def test_the_pipeline_has_the_same_steps_with_the_same_settings(folder: Path) -> None:
    path = f"prepare.footage.0.path={folder / 'footage'}"
    told = plan(outline_pipeline, PipelineConfig, "pipeline", folder, path)
    assert told.count("after the steps before it (not yet: ") == 4
    assert "A100-80G" in told
    pipeline = shipped(PipelineConfig, "pipeline", folder, path)
    alone = {
        "prepare": shipped(PrepareConfig, "prepare", folder, f"footage.0.path={folder / 'footage'}"),
        "style": shipped(TrainConfig, "style", folder),
        "motion": shipped(TrainConfig, "motion", folder),
        "generate": shipped(GenerateConfig, "generate", folder),
        "evaluate": shipped(EvaluateConfig, "evaluate", folder),
    }
    ties = {"parents", "arms", "real", "groups"}  # what a pipeline ties its steps together with
    for step, job in alone.items():
        given = getattr(pipeline, step).model_dump()
        assert {k: v for k, v in given.items() if k not in ties} == {
            k: v for k, v in job.model_dump().items() if k in given and k not in ties
        }, step
