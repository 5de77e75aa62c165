"""Contact sheets: the stored previews of windows that are spread over a dataset's groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow.parquet as pq

from cinesynth.data.spread import W, spread
from cinesynth.report.images import data_uri
from cinesynth.storage import Storage


def contact_sheet(
    dataset: Storage, shards: Iterable[str], windows: Sequence[W], limit: int, max_bytes: int
) -> list[tuple[W, str]]:
    """At most `limit` windows, spread over groups, each with its preview as a data URI.

    Args:
        dataset: the dataset's location.
        shards: objects whose `preview` column (JPEG of first, middle and last frame) may hold them.
        windows: the windows to choose from; the result keeps their order.
        limit: most windows.
        max_bytes: most bytes of all data URIs together; what does not fit is left out.
    """
    chosen = {w.window_id for w in spread(windows)[:limit]}
    images: dict[str, str] = {}
    size = 0
    for shard in shards:
        if len(images) == len(chosen):
            break
        with dataset.filesystem.open_input_file(f"{dataset.path}/{shard}") as f:
            table = pq.read_table(
                f, columns=["window_id", "preview"], filters=[("window_id", "in", chosen - images.keys())]
            )
        for row in table.to_pylist():
            uri = data_uri(row["preview"])
            if size + len(uri) <= max_bytes:
                images[row["window_id"]] = uri
                size += len(uri)
    return [(w, images[w.window_id]) for w in windows if w.window_id in images]
