"""Records that the steps of `data` hand to each other: windows, rejects, the plan, and the names of rows and files.

The plan (`plan.parquet`) lists the windows of a dataset with their groups and splits.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from cinesynth.data.dataset import WINDOW_SCHEMA, WindowFacts, read_table, window_columns, write_table
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage, sha256_json

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns. A file whose stamp is unchanged is not read again."""
Box = tuple[float, float, float, float]
"""(left, top, width, height) in stored pixels of the upright picture."""

PLAN_SCHEMA = pa.schema(
    [
        *WINDOW_SCHEMA,
        ("frame_pts", pa.list_(pa.int64())),
        ("box", pa.list_(pa.float64())),
        ("caption_from", pa.string()),
        ("own_group", pa.string()),
    ]
)
CAPTION_PLACES = ("shot", "txt", "json", "footage", "captioner", "default", "unknown")
"""Where captions come from: a shot in a JSON file, a text file, a JSON file, a list's row or the `caption` of a source,
the captioner, the dataset's default; `unknown` in plans that do not record it."""
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "reason", "detail", "window_id")])
_IDENTITY = b"cinesynth.identity"
_BRIEF = 160  # characters of a source or detail in a summary


# --- windows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window(WindowFacts):
    """One window of one file, before encoding.

    Attributes:
        location: of the file, with the options that open it; not stored with the dataset.
        stamp: of the file when it was read; not stored.
        frame_pts: timestamp of the source frame that each window frame shows.
        box: the part of the stored picture that the window shows.
        caption_from: one of `CAPTION_PLACES`; empty where it has no caption of its own.
        own_group: what its source says; `group` may be that of footage that it resembles. Empty until it is planned,
            and in plans that do not record it.
    """

    location: str
    stamp: Stamp
    frame_pts: tuple[int, ...]
    box: Box
    caption_from: str = ""
    own_group: str = ""


def window_to_json(window: Window) -> str:
    """A window as text, for a column of a block."""
    return json.dumps(asdict(window))


def window_from_json(text: str) -> Window:
    """The inverse of `window_to_json`."""
    row = json.loads(text)
    return Window(**{**row, **{name: tuple(row[name]) for name in ("stamp", "frame_pts", "box")}})


def row_id(window_id: str, caption: str) -> str:
    """Identity of an encoded row. It changes with the caption, so that a window with a new caption is encoded again."""
    return sha256_json([window_id, caption])


def prompt_file(caption: str) -> str:
    """Name of the object that holds the embedding of a caption."""
    return f"prompts/{hashlib.sha256(caption.encode()).hexdigest()}.parquet"


# --- the plan ------------------------------------------------------------------------------------------------


def write_plan(dataset: Storage, identity: str, windows: Iterable[Window]) -> None:
    """Store the windows of the dataset, with their groups and splits."""
    of_plan = ("frame_pts", "box", "caption_from", "own_group")
    rows = [window_columns(w) | {name: getattr(w, name) for name in of_plan} for w in windows]
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    write_table(dataset, "plan.parquet", table.replace_schema_metadata({_IDENTITY: identity.encode()}))


def read_plan(dataset: Storage, identity: str | None = None) -> list[Window]:
    """The stored plan; empty when there is none. Its windows cannot be decoded: they lack what opens their files.

    Raises DatasetError when `identity` is given and the plan has another.
    """
    if not dataset.exists("plan.parquet"):
        return []
    table = read_table(dataset, "plan.parquet")
    if identity is not None and (table.schema.metadata or {}).get(_IDENTITY) != identity.encode():
        raise DatasetError(f"{dataset.uri} holds a dataset that another run made; use another name or remove it")
    names = [f.name for f in fields(WindowFacts)]
    return [
        Window(
            **{name: row[name] for name in names} | {"scores": dict(row["scores"])},
            location=row["source_uri"],
            stamp=(0, 0),
            frame_pts=tuple(row["frame_pts"]),
            box=tuple(row["box"]),
            caption_from=row.get("caption_from") or "",
            own_group=row.get("own_group") or "",
        )
        for row in table.to_pylist()
    ]


def caption_places(dataset: Storage) -> dict[str, str]:
    """Row id of each planned window to where its caption comes from; those of which it is not recorded are left out."""
    if not dataset.exists("plan.parquet"):
        return {}
    table = read_table(dataset, "plan.parquet")
    if "caption_from" not in table.column_names:
        return {}
    rows = table.select(["window_id", "caption", "caption_from"]).to_pylist()
    return {row_id(row["window_id"], row["caption"]): row["caption_from"] for row in rows if row["caption_from"]}


def withdrawn(dataset: Storage) -> dict[str, dict[str, Any]]:
    """sha256 of each withdrawn source to the record of its withdrawal."""
    return {entry["sha256"]: entry for name in dataset.list("withdrawn") for entry in [dataset.read_json(name)]}


# --- rejects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reject:
    """A file, shot or window that is not in the dataset, and why. `window_id` is set for a single window only."""

    source: str
    reason: str
    detail: str
    window_id: str = ""


def reject_table(rejects: list[Reject]) -> pa.Table:
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECT_SCHEMA)


def read_rejects(dataset: Storage) -> list[Reject]:
    return [Reject(**row) for row in read_table(dataset, "rejected.parquet").to_pylist()]


def left_out(rejects: Sequence[Reject]) -> dict[str, str]:
    """Reason to how many were left out for it, and the first of them, most frequent first."""
    first: dict[str, Reject] = {}
    for reject in rejects:
        first.setdefault(reject.reason, reject)
    counts = Counter(reject.reason for reject in rejects)
    return {
        why: f"{n:,} (the first: {_brief(first[why].source)}: {_brief(first[why].detail)})"
        for why, n in counts.most_common()
    }


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _BRIEF else f"{line[: _BRIEF - 1]}…"


def explain(rejects: list[Reject]) -> str:
    """Counts of rejects by reason, and the first one in full, of those that could have been video if there are any."""
    counts = Counter(reject.reason for reject in rejects)
    telling = sorted(rejects, key=lambda reject: reject.reason in ("not_video", "unused"))[:1]
    first = "".join(f"; first: {reject.source}: {reject.detail}" for reject in telling)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) + first
