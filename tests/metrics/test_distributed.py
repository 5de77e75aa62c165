"""A cluster that cannot hold the workers is told before they wait."""

from __future__ import annotations

import pytest

from cinesynth.errors import ConfigError
from cinesynth.metrics.distributed import check_capacity

NODES = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 3.0, "GPU": 1.0}]


def test_workers_lie_on_one_node_each() -> None:
    check_capacity(3, {"CPU": 2, "GPU": 0}, NODES, None)
    with pytest.raises(ConfigError, match=r"workers = 4: each takes 2 CPU; .*\(4 CPU, 3 CPU\) hold 3 such .*workers=3"):
        check_capacity(4, {"CPU": 2, "GPU": 0}, NODES, None)
    check_capacity(35, {"CPU": 0.2, "GPU": 0}, NODES, None)
    with pytest.raises(ConfigError, match=r"each takes 1 CPU and 1 GPU; .*4 CPU and 0 GPU, 3 CPU and 1 GPU\) hold 1 "):
        check_capacity(2, {"CPU": 1, "GPU": 1}, NODES, None)


def test_a_cluster_that_grows_is_measured_by_how_far_it_does() -> None:
    check_capacity(8, {"CPU": 2, "GPU": 0}, NODES, {"CPU": 16})
    with pytest.raises(ConfigError, match="workers = 9"):
        check_capacity(9, {"CPU": 2, "GPU": 0}, NODES, {"CPU": 16})
