"""`ray up` on AWS and Google Cloud: the files, by Ray's own check, and the commands that they name."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.pools import POOLS
from tests.conftest import REPOSITORY

CLOUDS = ("aws", "gcp")
GCP_INSTANCE = {"machineType", "disks", "serviceAccounts", "scheduling"}
"""Fields of an instance that the file sets, from https://cloud.google.com/compute/docs/reference/rest/v1/instances."""
SCHEDULING = {"onHostMaintenance": "TERMINATE", "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}


def file_of(cloud: str) -> Path:
    return REPOSITORY / "cluster" / cloud / "a100.yaml"


def read(cloud: str) -> Any:
    return yaml.safe_load(file_of(cloud).read_text())


def checked(config: Any) -> Any:
    """As `ray up` takes it, by Ray's own check."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_takes_the_file_and_refuses_a_typo(cloud: str) -> None:
    config = read(cloud)
    checked(config)
    for path in (("max_worker",), ("available_node_types", "a100", "min_worker"), ("docker", "imag")):
        wrong = copy.deepcopy(config)
        place = wrong
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = 1
        with pytest.raises(Exception, match=path[-1]):
            checked(wrong)
    with pytest.raises(ValueError, match="head_node_type"):
        checked(config | {"head_node_type": "haed"})


@pytest.mark.parametrize("cloud", CLOUDS)
def test_node_types_are_the_pools(cloud: str) -> None:
    nodes = checked(read(cloud))["available_node_types"]
    assert set(nodes) == set(POOLS)
    for name, node in nodes.items():
        pool, machine = POOLS[name], POOLS[name].machines[cloud]  # type: ignore[index]
        kind = node["node_config"].get("InstanceType") or node["node_config"]["machineType"]
        assert kind == machine.name
        assert node["labels"] == pool.labels
        gpus = {"GPU": machine.gpus} if machine.gpus else {}
        cpus = {"CPU": machine.cpus if name != "head" else 0}  # the head takes no work
        assert node["resources"] == cpus | gpus | pool.resources
        assert node.get("min_workers", 0) == 0
        if name != "head":
            assert node["max_workers"] >= 1


@pytest.mark.parametrize("cloud", CLOUDS)
def test_idle_nodes_end(cloud: str) -> None:
    config = checked(read(cloud))
    assert 1 <= config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["max_workers"] >= sum(node["max_workers"] for node in config["available_node_types"].values())


def test_aws_takes_what_a_node_asks_for() -> None:
    """Names and types of its fields, by the description of EC2's API that boto3 carries."""
    from botocore.session import get_session
    from botocore.validate import validate_parameters

    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in read("aws")["available_node_types"].items():
        asked = node["node_config"]
        validate_parameters({**asked, "MinCount": 1, "MaxCount": 1}, shape)
        spot = asked.get("InstanceMarketOptions", {}).get("MarketType")
        assert (spot == "spot") == (POOLS[name].market == "spot")
    with pytest.raises(Exception, match="InstanceTyp"):
        validate_parameters({"InstanceTyp": "x", "MinCount": 1, "MaxCount": 1}, shape)


def test_gcp_nodes_ask_for_known_fields() -> None:
    for name, node in read("gcp")["available_node_types"].items():
        asked = node["node_config"]
        assert set(asked) <= GCP_INSTANCE
        scheduling = asked.get("scheduling", {})
        assert all(SCHEDULING[key] == value for key, value in scheduling.items())
        assert (scheduling.get("provisioningModel") == "SPOT") == (POOLS[name].market == "spot")
        assert ("onHostMaintenance" in scheduling) == (POOLS[name].accelerator is not None)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_node_shows_the_token_and_the_dashboard_is_on_loopback(cloud: str) -> None:
    config = checked(read(cloud))
    (token,) = [remote for remote, local in config["file_mounts"].items() if local == "~/.ray/auth_token"]
    assert token.endswith("/.ray/auth_token")  # where Ray looks for it
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in config[key] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "TOKEN=" not in file_of(cloud).read_text()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_nodes_install_the_exact_versions(cloud: str) -> None:
    config = checked(read(cloud))
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert installs
    for command in [*config["head_setup_commands"], *config["worker_setup_commands"], *installs]:
        if "pip install" in command:  # Ray's own defaults would stand here too
            assert "--constraint constraints.txt" in command
    assert [local for local in config["file_mounts"].values() if local == "."]
    for key, commands in config.items():
        if key.endswith("_commands"):
            for command in commands:
                assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command
