"""The worker groups are the pools that configurations ask for, as Ray's own autoscaler reads them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.utils import parse_quantity

import cinesynth
from cluster.kuberay.manifests import RAY_KINDS, Manifest, read_manifests
from cluster.pools import POOLS
from tests.conftest import REPOSITORY

MANIFESTS = read_manifests()
CLUSTERS = [m for m in MANIFESTS if m.kind in RAY_KINDS]


def autoscaler_view(manifest: Manifest) -> dict[str, Any]:
    """What Ray's autoscaler makes of a cluster: its node types by group."""
    custom_resource = {"metadata": manifest.document["metadata"], "spec": manifest.cluster_spec}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(custom_resource)["available_node_types"]
    return found


@pytest.mark.parametrize("manifest", CLUSTERS, ids=lambda m: m.name)
def test_a_group_has_the_labels_and_resources_of_its_pool(manifest: Manifest) -> None:
    types = autoscaler_view(manifest)
    assert set(types) - {"headgroup"} <= set(POOLS)
    for name, found in types.items():
        pool = POOLS["head" if name == "headgroup" else name]
        gpus = next(iter(pool.machines.values())).gpus
        assert found["labels"] == pool.labels
        assert found["resources"].get("GPU", 0) == gpus
        assert {k: v for k, v in found["resources"].items() if k.startswith("accelerator_type:")} == pool.resources
        assert (found["resources"]["CPU"] == 0) is (name == "headgroup")


@pytest.mark.parametrize("manifest", CLUSTERS, ids=lambda m: m.name)
def test_a_pod_fits_the_machines_of_its_pool(manifest: Manifest) -> None:
    for name, _, group in manifest.groups():
        requests = [container["resources"]["requests"] for container in group["template"]["spec"]["containers"]]
        for machine in POOLS[name].machines.values():
            assert sum(parse_quantity(r["cpu"]) for r in requests) < machine.cpus
            assert sum(parse_quantity(r["memory"]) for r in requests) < machine.memory_gib * 2**30 * 0.95
        assert all(
            c["resources"]["limits"] == c["resources"]["requests"] for c in group["template"]["spec"]["containers"]
        )


def test_the_shared_cluster_grows_from_nothing_and_shrinks_when_idle() -> None:
    types = autoscaler_view(next(m for m in CLUSTERS if m.kind == "RayCluster"))
    assert {name: (t["min_workers"], t["max_workers"], t.get("idle_timeout_s")) for name, t in types.items()} == {
        "headgroup": (0, 0, None),
        "data": (0, 2, 120.0),
        "a100": (0, 1, 600.0),
        "a100-spot": (0, 2, 600.0),
    }


def test_serving_runs_on_no_spot_node() -> None:
    service = next(m for m in CLUSTERS if m.kind == "RayService")
    assert [labels["labels"]["ray.io/market-type"] for labels in autoscaler_view(service).values()] == ["on-demand"] * 2


def test_every_flavor_is_a_pool_of_nodes() -> None:
    flavors = {m.name: m.spec for m in MANIFESTS if m.kind == "ResourceFlavor"}
    assert {name: spec["nodeLabels"] for name, spec in flavors.items()} == {
        f"cinesynth-{pool}": {"cinesynth.io/pool": pool} for pool in POOLS
    }
    for queue in (m for m in MANIFESTS if m.kind == "ClusterQueue"):
        for flavor in queue.spec["resourceGroups"][0]["flavors"]:
            quota = {r["name"]: int(parse_quantity(str(r["nominalQuota"]))) for r in flavor["resources"]}
            gpus = next(iter(POOLS[flavor["name"].removeprefix("cinesynth-")].machines.values())).gpus
            assert quota["nvidia.com/gpu"] % gpus == 0 if gpus else quota["nvidia.com/gpu"] == 0


def test_image_and_ray_are_of_this_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (ray,) = [d for d in project["dependencies"] if d.startswith("ray[")]
    (pinned,) = re.findall(r"^ray==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert f">={pinned.rpartition('.')[0]}," in ray
    for manifest in CLUSTERS:
        assert manifest.cluster_spec["rayVersion"] == pinned
        for spec in manifest.pod_specs():
            tag = spec["containers"][0]["image"].rpartition(":")[2]
            assert tag == f"{cinesynth.__version__}-ray{pinned}"
