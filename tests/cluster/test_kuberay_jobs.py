"""The entrypoints of the RayJobs and the application of the RayService are planned here as they stand.

Nano's folder stands for the model, and a dataset of a few windows for the prepared one.
"""

from __future__ import annotations

import json
import runpy
import shlex
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from cinesynth.storage import Storage
from cinesynth.studies.inputs import LONG_FRAMES
from cluster.kuberay.manifests import Manifest, read_manifests
from jobs import metadata
from serve.app import build
from serve.auth import create_key
from tests.conftest import REPOSITORY
from tests.tiny_dataset import encoded_dataset, model_and_footage

MANIFESTS = read_manifests()
JOBS = [m for m in MANIFESTS if m.kind == "RayJob"]
SERVICE = next(m for m in MANIFESTS if m.kind == "RayService")
SMALL = [[480, 832], [832, 480]]
"""Sizes that the small model has positions for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, footage, and a storage with the datasets that the entrypoints name, which share no file."""
    folder = model_and_footage(tmp_path_factory.mktemp("kuberay"))
    datasets, model = folder / "storage" / "datasets", str(folder / "model")
    encoded_dataset(Storage.open(datasets / "wan14b-clips"), model, ("train", "val", "test"))
    encoded_dataset(Storage.open(datasets / "wan14b-historical"), model, ("train", "val", "test"), first=3)
    encoded_dataset(Storage.open(datasets / "wan14b-sci-fi"), model, ("test",), first=6)
    encoded_dataset(Storage.open(datasets / "wan14b-long"), model, ("test",), length=LONG_FRAMES, first=7)
    return folder


@pytest.fixture
def sigterm() -> Iterator[None]:
    """A job handles SIGTERM in its own way."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def stand_ins(job: str, folder: Path) -> list[str]:
    """In place of what cannot be here: storage, a model of 14B, the weights of R-LPIPS, windows long enough for FVD."""
    alex = Path(str(find_spec("lpips").origin)).parent / "weights" / "v0.1" / "alex.pth"  # type: ignore[union-attr]
    own = {
        "prepare": [f"footage.0.path={folder / 'footage'}", "window.sizes=480p"],
        "tune": [f"r_lpips_weights={alex}", "objectives=[lpips, r_lpips]"],
    }
    return [f"storage={folder / 'storage'}", f"model={folder / 'model'}", "dry_run=true", *own.get(job, [])]


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("manifest", JOBS, ids=lambda m: m.name)
def test_an_entrypoint_is_planned(
    manifest: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python, option, module, *words = shlex.split(manifest.spec["entrypoint"])
    assert (python, option) == ("python", "-m")
    job = module.removeprefix("jobs.")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delitem(sys.modules, module, raising=False)  # a program is not imported before it runs
    monkeypatch.setattr("sys.argv", [module, *words, *stand_ins(job, folder)])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    told = capsys.readouterr().out
    assert told.startswith(f"{manifest.spec['metadata']['job_name']}"), told
    assert "dry run: nothing was started or written" in told


@pytest.mark.parametrize("manifest", JOBS, ids=lambda m: m.name)
def test_metadata_is_what_jobs_metadata_prints(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, module, *words = shlex.split(manifest.spec["entrypoint"])
    monkeypatch.chdir(REPOSITORY)
    metadata.main([module.removeprefix("jobs."), *words])
    assert json.loads(capsys.readouterr().out) == manifest.spec["metadata"]
    assert "storage=/storage" in words


def test_the_service_is_its_configuration_file_and_the_places_of_this_cluster() -> None:
    (application,) = yaml.safe_load(SERVICE.spec["serveConfigV2"])["applications"]
    shipped: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve" / "config" / "wan14b.yaml").read_text())
    places = {
        "storage": "/storage",
        "keys_file": "/etc/cinesynth/keys.json",
        "database": "sqlite:////var/lib/cinesynth/jobs.db",
    }
    engine = shipped["engine"] | {"min_replicas": 1}
    engine["group"]["pool"]["labels"] = {"cinesynth.io/pool": "a100"}
    assert application["args"] == shipped | places | {"engine": engine}
    for _, _, group in SERVICE.groups():
        mounts = [mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
        assert mounts == ["/storage", "/etc/cinesynth", "/var/lib/cinesynth"]


def test_the_service_is_built(folder: Path, tmp_path: Path) -> None:
    (application,) = yaml.safe_load(SERVICE.spec["serveConfigV2"])["applications"]
    keys = tmp_path / "keys.json"
    create_key(keys, "alice")
    here = {
        "model": str(folder / "model"),
        "sizes": SMALL,
        "storage": str(tmp_path / "storage"),
        "keys_file": str(keys),
        "database": f"sqlite:///{tmp_path / 'jobs.db'}",
    }
    engine = application["args"]["engine"]
    engine = engine | {"group": engine["group"] | {"ranks": 2}}  # the small model has fewer heads to divide
    built = build(application["args"] | here | {"engine": engine})
    assert built._bound_deployment.name == "Ingress"
    (group,) = SERVICE.cluster_spec["workerGroupSpecs"]
    asked = application["args"]["engine"]
    gpus = asked["max_replicas"] * asked["group"]["ranks"] * asked["group"]["gpus_per_rank"]
    assert gpus == int(group["resources"]["GPU"]) * group["maxReplicas"]
