"""Stages of the Ray Data graphs: the blocks that work is divided into, and the actors and tasks that take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from cinesynth.data.config import StageResources
from cinesynth.data.records import Window, window_to_json
from cinesynth.pool import Pool

_BLOCK_WINDOWS = 4
_BLOCK_FILES, _BLOCKS_PER_CPU, _BLOCKS = 64, 8, 10_000


def actor_stage(resources: StageResources, pool: Pool) -> dict[str, Any]:
    """Arguments of `map_batches` for a stage of actors that take whole blocks."""
    import ray

    return {
        "compute": ray.data.ActorPoolStrategy(size=resources.workers),
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        **pool.options(resources.gpus),
        "batch_format": "pyarrow",
        "batch_size": None,
    }


def device_of(resources: StageResources) -> str:
    return "cuda" if resources.gpus > 0 else "cpu"


def to_blocks(windows: Iterable[Window]) -> list[pa.Table]:
    """Windows as blocks for Ray Data. A block holds windows of one bucket, and mostly of one file."""
    blocks: list[list[Window]] = []
    for window in sorted(windows, key=block_order):
        if not blocks or len(blocks[-1]) == _BLOCK_WINDOWS or blocks[-1][0].bucket != window.bucket:
            blocks.append([])
        blocks[-1].append(window)
    return [pa.table({"window": [window_to_json(w) for w in block]}) for block in blocks]


def block_order(window: Window) -> tuple[str, str, int]:
    """The order of windows in blocks."""
    return window.bucket, window.source_sha256, window.frame_pts[0]


def map_files(
    rows: Sequence[dict[str, str]],
    costs: Sequence[float],
    function: Callable[[dict[str, str]], dict[str, Any]],
    schema: pa.Schema,
    pool: Pool,
) -> Any:
    """The Ray Data graph that applies `function` to each file's row on all CPUs of a pool. Results have `schema`."""
    import ray

    def mapped(batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([function(row) for row in batch.to_pylist()], schema=schema)

    blocks = file_blocks(rows, costs, ray.cluster_resources().get("CPU", 1))
    return ray.data.from_arrow(blocks).map_batches(mapped, batch_size=1, batch_format="pyarrow", **pool.options(0))


def file_blocks(rows: Sequence[dict[str, str]], costs: Sequence[float], cpus: float) -> list[pa.Table]:
    """Rows of files as blocks for Ray Data, in order. The results of a block are lost when its worker dies.

    A core waits about 0.1 s between two tasks of Ray Data, so small files share a block, as long as every core gets
    several blocks. More than some ten thousand blocks would slow Ray Data down.

    Args:
        rows: one for each file.
        costs: of each file, as a share of the cost that a block may have.
        cpus: number of CPUs of the cluster.
    """
    most = max(1, min(_BLOCK_FILES, len(rows) / (_BLOCKS_PER_CPU * max(1, cpus))))
    limit = max(1.0, sum(costs) / _BLOCKS)
    blocks: list[list[dict[str, str]]] = []
    used = 0.0
    for row, cost in zip(rows, costs, strict=True):
        if not blocks or len(blocks[-1]) + 1 > most or used + cost > limit:
            blocks.append([])
            used = 0.0
        blocks[-1].append(row)
        used += cost
    return [pa.Table.from_pylist(block) for block in blocks]
