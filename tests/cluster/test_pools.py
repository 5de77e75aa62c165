"""Names of pools are one set: the table's, in manifests, scripts, configurations, code and docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.util.accelerators.accelerators import NVIDIA_A100_80G

from cinesynth.config import (
    EvaluateConfig,
    GenerateConfig,
    JobConfig,
    PipelineConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
)
from cinesynth.data.config import DecodeResources
from cinesynth.pool import Pool
from cinesynth.settings import load_config
from cinesynth.studies.config import StudyConfig
from cluster.pools import A100_80G, ACCELERATOR_LABEL, LABELS, MARKET_LABEL, POOL_LABEL, POOLS, table
from serve.config import ServeConfig
from tests.conftest import REPOSITORY

NANO = {"prepare-sci-fi": "prepare", "prepare-historical": "prepare", "prepare-long": "prepare"}
SETTINGS: dict[str, type[JobConfig]] = {
    "prepare": PrepareConfig,
    "style": TrainConfig,
    "motion": TrainConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "tune": TuneConfig,
    "study": StudyConfig,
    "pipeline": PipelineConfig,
}
WORK = {
    TrainConfig: {"train"},
    GenerateConfig: {"generate"},
    EvaluateConfig: {"evaluate"},
    TuneConfig: {"train", "evaluate"},
    StudyConfig: {"train", "generate", "evaluate"},
    PipelineConfig: {"encode", "train", "generate", "evaluate"},
    PrepareConfig: {"encode"},
    ServeConfig: {"serve"},
}
TEXTS = ("*.yaml", "*.yml", "*.json", "*.sbatch", "*.sh", "*.py", "*.md", "*Dockerfile*")
ANY_OF = re.compile(r"^in\((.*)\)$")
"""Ray's label selector of several values."""


def files(*folders: str) -> list[Path]:
    """Whatever text there is."""
    found = {path for folder in folders for text in TEXTS for path in (REPOSITORY / folder).rglob(text)}
    return sorted(path for path in found if "node_modules" not in path.parts)


def shipped(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.yaml"))


def pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a document, with its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pairs(inner)


def values(value: Any) -> list[str]:
    """Those that a label or a selector names."""
    if isinstance(value, list):
        return [str(each) for each in value]
    several = ANY_OF.match(str(value).removeprefix("!"))
    return [each.strip() for each in several.group(1).split(",")] if several else [str(value)]


def read(path: Path) -> list[Any]:
    """The documents of a file; a text without structure has none."""
    return [*yaml.safe_load_all(path.read_text())] if path.suffix in (".yaml", ".yml", ".json") else []


def test_every_label_of_ours_is_the_pools() -> None:
    """Also where it stands in a string: `--labels`, a selector, a command."""
    seen = 0
    for path in files("cluster", "jobs", "serve", "tune", "cinesynth", "docs"):
        for key in re.findall(r"(?<![\w/.-])cinesynth\.io/[\w.-]*\w", path.read_text(errors="replace")):
            assert key == POOL_LABEL, path
            seen += 1
    assert seen > 20


def test_code_takes_the_label_from_the_table() -> None:
    table_itself = REPOSITORY / "cluster" / "pools.py"
    for path in files("cluster", "jobs", "serve", "tune", "cinesynth"):
        if path.suffix == ".py" and path != table_itself:
            assert POOL_LABEL not in path.read_text(), path


def test_every_pool_that_is_named_is_there() -> None:
    allowed = {
        POOL_LABEL: set(POOLS),
        ACCELERATOR_LABEL: {A100_80G},
        MARKET_LABEL: {"on-demand", "spot"},
    }
    seen = set()
    for path in files("cluster", "jobs", "serve", "docs"):
        found = [pair for document in read(path) for pair in pairs(document)]
        for key in LABELS:  # in strings: key=value, or "key": "value" of JSON
            stated = re.findall(rf"{re.escape(key)}(?:=|\\?[\"']: ?\\?[\"'])([\w.-]+(?:\([^)]*\))?)", path.read_text())
            found += [(key, value) for value in stated]
        for key, value in found:
            if key in allowed:
                assert set(values(value)) <= allowed[key], f"{path}: {key}: {value}"
                seen |= {*values(value)}
    assert set(POOLS) <= seen


def test_groups_of_nodes_are_named_after_their_pool() -> None:
    """Worker groups of KubeRay and node types of `ray up`; their labels are the pool's, as far as they are stated."""
    for path in files("cluster"):
        for document in read(path):
            for key, value in pairs(document):
                if key == "workerGroupSpecs" and isinstance(value, list):  # not the CRD's schema of it
                    assert {group["groupName"] for group in value} <= set(POOLS), path
                if key == "available_node_types":
                    assert set(value) <= set(POOLS), path
                    assert all(node["labels"] == POOLS[name].labels for name, node in value.items()), path


def pools_of(settings: BaseModel) -> Iterator[Pool | DecodeResources]:
    """Every part of a configuration that asks for nodes."""
    if isinstance(settings, Pool | DecodeResources):
        yield settings
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from pools_of(value)


def parsed(path: Path) -> BaseModel:
    """A shipped configuration; what only a command line gives is made up."""
    if path.parent.name == "config":
        return load_config(ServeConfig, str(path))
    cls = SETTINGS[NANO.get(path.stem, path.stem)]
    made_up = {"study": ["study=rank_quality"], "tune": ["objectives=[lpips, fvd]"]}
    return load_config(cls, str(path), made_up.get(path.stem, []))


@pytest.mark.parametrize("path", [*shipped("jobs/configs"), *shipped("serve/config")], ids=lambda path: str(path.stem))
def test_a_configuration_asks_for_pools_that_take_its_work(path: Path) -> None:
    settings = parsed(path)
    asked = list(pools_of(settings))
    assert asked
    if "nano" in (path.parent.name, path.stem):  # it runs anywhere
        assert not [pool for pool in asked if pool.labels or getattr(pool, "accelerator", None)]
        return
    for pool in asked:
        reads = isinstance(pool, DecodeResources)
        work = {"read footage"} if reads else WORK[type(settings)]
        names = values(pool.labels[POOL_LABEL])
        if reads or type(settings) is ServeConfig:
            assert all(work <= set(POOLS[name].takes) for name in names)
        else:
            # Of a pipeline, a study or a search each part has some of the work; spot nodes and others take all of it.
            assert all(set(POOLS[name].takes) & work == work for name in names)
            assert set(names) == {name for name in POOLS if work <= set(POOLS[name].takes)}
        assert getattr(pool, "accelerator", None) == {POOLS[name].accelerator for name in names}.pop()


def test_the_table_says_what_ray_says() -> None:
    assert A100_80G == NVIDIA_A100_80G
    assert all(name == pool.name for name, pool in POOLS.items())
    for pool in POOLS.values():
        for machine in pool.machines.values():
            assert (machine.gpus > 0) == (pool.accelerator is not None)
    assert not POOLS["head"].takes
    assert [pool.name for pool in POOLS.values() if "serve" in pool.takes] == ["a100"]


def test_the_docs_have_the_table() -> None:
    assert table() in (REPOSITORY / "docs" / "clusters.md").read_text()
