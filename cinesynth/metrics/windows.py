"""The numbers behind the means: one of each video, or pair, by every metric that is a number of each.

`windows.parquet` and `windows.csv` in the run's folder have the same rows, for programs and for people: metric, arm
(`real` where the metric has a value of the real set), id of the video, its group and domain, and the mean over the
frames that count.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cinesynth.data.dataset import write_table
from cinesynth.metrics.catalogue import METRICS
from cinesynth.metrics.means import window_means
from cinesynth.metrics.metric import Sample
from cinesynth.storage import Storage

WINDOWS = "windows.parquet"
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("metric", "arm", "id", "group", "domain")), ("value", pa.float64())]
)


def window_rows(samples: Mapping[str, Sequence[Sample]], domains: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row of each metric, arm and video, in this order; none of a metric whose networks give features.

    Args:
        samples: metric to its samples, the real one first.
        domains: id of a video to its domain, where it is known.
    """
    return [
        {
            "metric": name,
            "arm": sample.name,
            "id": key,
            "group": sample.groups[key],
            "domain": domains.get(key, ""),
            "value": value,
        }
        for name, of in samples.items()
        if METRICS[name].network.d is None
        for sample in of
        for key, value in window_means(METRICS[name], sample).items()
    ]


def write_windows(run: Storage, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Write both files to a run's folder; returns where the first is, as an output."""
    write_table(run, WINDOWS, pa.Table.from_pylist(rows, schema=SCHEMA))
    text = io.StringIO()
    table = csv.DictWriter(text, SCHEMA.names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    run.write_text("windows.csv", text.getvalue())
    return {"windows": run.child(WINDOWS).uri}


class WindowValue(NamedTuple):
    """A metric's number of one video: the mean over the frames that count."""

    metric: str
    arm: str
    id: str
    group: str
    domain: str
    value: float


def read_windows(folder: Storage) -> list[WindowValue]:
    """The rows of `windows.parquet`; none of a run of before there was such a file."""
    if not folder.exists(WINDOWS):
        return []
    with folder.filesystem.open_input_file(f"{folder.path}/{WINDOWS}") as file:
        columns = pq.read_table(file, columns=list(WindowValue._fields)).to_pydict()
    return [WindowValue(*row) for row in zip(*columns.values(), strict=True)]
