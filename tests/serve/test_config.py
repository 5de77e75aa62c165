"""The service's configuration: what the shipped files ask for, and what is refused before anything is deployed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cinesynth.errors import ConfigError
from cinesynth.settings import load_config, parse_config
from cinesynth.wan.folder import model_folder
from serve.app import HEAD, build, drain_seconds
from serve.auth import create_key
from serve.config import ServeConfig
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "serve" / "config"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of nano's size that has room for long videos of 720p."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(model_folder("nano"), folder)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_max_seq_len": 128}))
    return folder


def test_the_shipped_wan14b_is_a_group_of_four_a100s(large: Path, tmp_path: Path) -> None:
    config = load_config(ServeConfig, CONFIGS / "wan14b.yaml", [f"model={large}", f"storage={tmp_path}"])
    create_key(config.keys_path(), "alice")
    config.check_inputs()
    assert config.bundles() == [{"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100-80G": 0.001}] * 4
    assert config.group_shape().kernels.compiled
    assert config.resolved().model_name() == "wan2.1-i2v-14b-720p"
    build(config.model_dump())


def test_what_is_deployed_reserves_an_engines_ranks_on_one_node_and_nothing_else(tmp_path: Path) -> None:
    create_key(tmp_path / "serve" / "keys.json", "alice")
    values = {"ingress": {"replicas": 3, "slots": 77}, "engine": {"group": {"ranks": 2}}}
    bound = build({"storage": str(tmp_path), **values})._bound_deployment
    deployed = {bound.name: bound}
    while inner := [value for value in bound.init_args if hasattr(value, "_bound_deployment")]:
        (bound,) = [value._bound_deployment for value in inner]
        deployed[bound.name] = bound
    assert list(deployed) == ["Ingress", "Dispatcher", "Engine"]
    ingress, dispatcher, engine = deployed.values()
    assert (ingress.num_replicas, ingress.max_ongoing_requests) == (3, 77)
    assert (dispatcher.num_replicas, dispatcher.ray_actor_options["resources"]) == (1, {HEAD: 0.001})
    assert engine.max_ongoing_requests == 1
    placed = engine._replica_config
    assert (placed.placement_group_bundles, placed.placement_group_strategy) == ([{"CPU": 1.0}] * 2, "STRICT_PACK")
    for deployment in deployed.values():
        reserved = deployment.ray_actor_options
        assert (reserved["num_cpus"], reserved.get("num_gpus", 0)) == (0, 0), deployment.name


def test_work_is_the_operations_of_the_forward_passes(tmp_path: Path) -> None:
    shape = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
    values = {"family": "wan2.1-i2v", "transformer": {**shape, "context_tokens": 769}, "storage": str(tmp_path)}
    config = parse_config(ServeConfig, values)
    at_720p, at_480p = (config.flops(81, *size, 40, True) for size in ((720, 1280), (480, 832)))
    assert at_720p == pytest.approx(523e15, rel=0.01)
    assert at_720p / at_480p == pytest.approx(3.9, abs=0.03)
    assert config.flops(81, 480, 832, 40, False) == at_480p / 2


def test_a_drain_lasts_as_long_as_the_longest_video() -> None:
    assert drain_seconds(ServeConfig(), 700.0) == 1050
    assert drain_seconds(parse_config(ServeConfig, {"engine": {"drain_s": 5}}), 700.0) == 5


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"engine": {"group": {"ranks": 3}}}, r"engine\.group\.ranks = 3: the model's 4 attention heads"),
        ({"engine": {"group": {"gpus": 1}}}, r"engine\.group\.gpus"),
        ({"engine": {"group": {"strategy": "fsdp2"}}}, "set ranks above 1"),
        ({"engine": {"group": {"attention": "cudnn"}}}, "kernel of GPUs"),
        ({"storag": "x"}, "storag"),
        ({"sizes": [[64, 100]]}, "100"),
    ],
)
def test_what_cannot_run_is_refused_with_its_name(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    storage = {"storage": str(tmp_path)}
    create_key(tmp_path / "serve" / "keys.json", "alice")
    with pytest.raises(ConfigError, match=told):
        build({**storage, **values})


def test_a_relative_storage_in_a_copied_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    with pytest.raises(ConfigError, match="storage: 'storage' is relative"):
        build({})
