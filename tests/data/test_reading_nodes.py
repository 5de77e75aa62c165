"""Footage is hashed, scanned and decoded on the nodes that `resources.decode.labels` names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cinesynth.data.config import PrepareResources
from cinesynth.data.prepare import check_readers
from cinesynth.data.stages import actor_stage, map_files
from cinesynth.errors import ConfigError
from tests.conftest import Head


class WhereItRuns:
    """A stage that says on which node it is."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.table({"node": [where()] * len(batch)})


def where() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def test_reading_takes_the_nodes_of_its_own_pool(ray_head: Head) -> None:
    import ray

    resources = PrepareResources.model_validate({"decode": {"labels": {"cinesynth.io/pool": ["data", "other"]}}})
    with pytest.raises(ConfigError, match=r"resources.decode.labels: .* cinesynth.io/pool=data or other .* 1 CPU;"):
        check_readers(resources)
    node = ray_head.cluster.add_node(num_cpus=1, labels={"cinesynth.io/pool": "data"})
    try:
        ray_head.cluster.wait_for_nodes()
        check_readers(resources)

        def told(row: dict[str, str]) -> dict[str, Any]:
            return {"node": where()}

        rows = [{"file": str(i)} for i in range(8)]
        schema = pa.schema([("node", pa.string())])
        hashed = map_files(rows, [1.0] * 8, told, schema, resources.readers())
        decoded = ray.data.from_arrow([pa.table({"x": [0]})] * 4).map_batches(
            WhereItRuns, **actor_stage(resources.vae, resources.decoders())
        )
        for graph in (hashed, decoded):
            assert {row["node"] for row in graph.take_all()} == {node.node_id}
    finally:
        ray_head.cluster.remove_node(node)
