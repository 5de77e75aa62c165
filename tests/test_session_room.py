"""A cluster that cannot hold the workers is told before they wait."""

from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError
from ray._private.label_utils import validate_label_selector

from cinesynth.data.config import PrepareResources, fitted
from cinesynth.errors import ConfigError
from cinesynth.pool import Pool
from cinesynth.session import check_capacity, most_resources

ANY = Pool()
NODES = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 3.0, "GPU": 1.0}]


def test_workers_lie_on_one_node_each() -> None:
    check_capacity(3, {"CPU": 2, "GPU": 0}, ANY, NODES, None)
    with pytest.raises(ConfigError, match=r"workers = 4: each takes 2 CPU; .*\(4 CPU, 3 CPU\) hold 3 such .*workers=3"):
        check_capacity(4, {"CPU": 2, "GPU": 0}, ANY, NODES, None)
    check_capacity(35, {"CPU": 0.2, "GPU": 0}, ANY, NODES, None)
    with pytest.raises(ConfigError, match=r"each takes 1 CPU and 1 GPU; .*4 CPU and 0 GPU, 3 CPU and 1 GPU\) hold 1 "):
        check_capacity(2, {"CPU": 1, "GPU": 1}, ANY, NODES, None)


def test_a_cluster_that_grows_is_measured_by_how_far_it_does() -> None:
    check_capacity(8, {"CPU": 2, "GPU": 0}, ANY, NODES, {"CPU": 16})
    with pytest.raises(ConfigError, match="workers = 9"):
        check_capacity(9, {"CPU": 2, "GPU": 0}, ANY, NODES, {"CPU": 16})


@pytest.mark.parametrize(
    ("told", "grows", "most"),
    [(None, False, None), ({"CPU": 16}, True, {"CPU": 16}), (None, True, {"CPU": sys.maxsize, "GPU": sys.maxsize})],
)
def test_how_far_a_cluster_grows_is_as_its_autoscaler_tells_and_else_without_a_limit(
    told: dict[str, float] | None, grows: bool, most: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.state.state.get_max_resources_from_cluster_config", lambda: told)
    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda fetch_from_server: grows)
    assert most_resources() == most


def test_a_pool_without_a_node_is_refused_unless_an_autoscaler_may_bring_one() -> None:
    pool = Pool(accelerator="A100-80G", labels={"cinesynth.io/pool": "a100"})
    check_capacity(8, {"CPU": 8, "GPU": 1}, pool, [], {"CPU": sys.maxsize, "GPU": sys.maxsize})
    with pytest.raises(ConfigError, match=r"no node of the cluster is of the pool A100-80G, cinesynth\.io/pool=a100"):
        check_capacity(8, {"CPU": 8, "GPU": 1}, pool, [], None)


def test_a_pool_is_of_nodes_with_its_accelerator_and_labels() -> None:
    pool = Pool(accelerator="A100-80G", labels={"pool": "train"})
    a100 = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100-80G": 1.0}
    check_capacity(4, {"CPU": 2, "GPU": 1}, pool, [a100, *NODES], None)
    with pytest.raises(ConfigError, match="hold 4 such workers: set workers=4"):
        check_capacity(5, {"CPU": 2, "GPU": 1}, pool, [a100, *NODES], None)
    with pytest.raises(ConfigError, match=r"no node of the cluster is of the pool A100-80G, pool=train and holds"):
        check_capacity(1, {"CPU": 2, "GPU": 1}, pool, NODES, None)
    check_capacity(1, {"CPU": 2, "GPU": 0}, pool, NODES, None)  # without a GPU any accelerator will do
    assert pool.takes({"pool": "train", "ray.io/node-id": "x"})
    assert not pool.takes({"pool": "serve"})
    assert pool.options(1) == {"accelerator_type": "A100-80G", "label_selector": {"pool": "train"}}
    assert pool.options(0) == {"label_selector": {"pool": "train"}}
    assert Pool().options(1) == {}


def test_a_pool_may_be_of_nodes_with_one_of_several_values() -> None:
    pool = Pool(labels={"pool": ["train", "spot"], "disk": "nvme"})
    assert pool.takes({"pool": "spot", "disk": "nvme"})
    assert not pool.takes({"pool": "spot"})
    assert not pool.takes({"pool": "serve", "disk": "nvme"})
    assert pool.told() == "pool=train or spot, disk=nvme"
    selector = pool.options(0)["label_selector"]
    assert selector == {"pool": "in(train,spot)", "disk": "nvme"}
    assert validate_label_selector(selector) is None
    for wrong in ([], ["in(a)"], ["a", ""]):
        with pytest.raises(ValidationError):
            Pool(labels={"pool": wrong})


def test_footage_is_read_where_decode_says_and_else_where_it_was() -> None:
    encoders = {"accelerator": "A100-80G", "labels": {"pool": "gpu"}}
    alone = PrepareResources.model_validate(encoders)
    assert alone.readers() == ANY
    assert alone.decoders() is alone
    apart = PrepareResources.model_validate({**encoders, "decode": {"labels": {"pool": "cpu"}}})
    assert apart.readers() == apart.decoders() == Pool(labels={"pool": "cpu"})
    assert fitted(apart, {"CPU": 4}).decoders() == apart.decoders()
