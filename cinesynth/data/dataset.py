"""The clips dataset on disk: Parquet shards with one row a window, an index of them, and a manifest written last.

    <storage>/datasets/<name>/
        manifest.json          schema version, shards with sha256, figures; its presence makes the dataset complete
        index/*.parquet        one row a window, without tensors: which shard and row holds it; the manifest names one
        shards/*.parquet       all columns; tensors as little-endian fp16 bytes beside a `<name>_shape` column
        prompts/*.parquet      embeddings of the distinct captions, the empty one for caption dropout among them
        pixels/<window_id>.mkv lossless frames of val and test windows
        sources.parquet        one row a file: what it is, its shots, its length
        rejected.parquet       one row for each thing that was left out: source, reason, detail, window_id
        history/*.json         the manifests there were, one a content
        index.html             windows by bucket, cuts by source, what was rejected
        files.parquet scans/ annotations/ plan.parquet commits/     what `prepare` goes on from
        withdrawn/*.json       sources that were taken out again

Training stages the shards to local files, then reads by index.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import os
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cinesynth.errors import DatasetError, ModelError, StorageError
from cinesynth.storage import Storage, sha256_file
from cinesynth.wan.family import DEFAULT_FAMILY, Family, family_named

if TYPE_CHECKING:  # workers that only decode do without
    import torch

SCHEMA_VERSION = 2
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
HELD_OUT: tuple[Split, ...] = ("val", "test")
"""The splits whose pixels are kept, for evaluation."""
_ROW_GROUP_BYTES = 1 << 20

WINDOW_SCHEMA = pa.schema(
    [
        ("window_id", pa.string()),
        ("source_uri", pa.string()),
        ("source_sha256", pa.string()),
        ("shot_id", pa.string()),
        ("group", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("fps", pa.int32()),
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bucket", pa.string()),
        ("caption", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
INDEX_SCHEMA = pa.schema([*WINDOW_SCHEMA, ("shard", pa.string()), ("row", pa.int32())])


def tensor_fields(names: Sequence[str], kind: pa.DataType | None = None) -> list[pa.Field]:
    """The two columns of each tensor: its bytes and its shape."""
    shape = pa.list_(pa.int32())
    return [f for name in names for f in (pa.field(name, kind or pa.binary()), pa.field(f"{name}_shape", shape))]


def clip_schema(family: Family) -> pa.Schema:
    """Columns of a shard of a model family's dataset."""
    return pa.schema(
        [
            *WINDOW_SCHEMA,
            ("frame_pts", pa.list_(pa.int64())),
            ("box", pa.list_(pa.float64())),  # left, top, width, height in stored pixels
            ("encoder_hash", pa.string()),
            ("preview", pa.binary()),  # JPEG: first, middle and last frame side by side
            *tensor_fields(family.tensors),
        ],
        metadata={"cinesynth.schema": str(SCHEMA_VERSION), "cinesynth.tensors": "float16, little-endian, C order"},
    )


@dataclass(frozen=True)
class WindowFacts:
    """The facts of a window, whether it is encoded or not. `scores` lacks those that could not be measured."""

    window_id: str
    source_uri: str
    source_sha256: str
    shot_id: str
    group: str
    start_s: float
    end_s: float
    fps: int
    num_frames: int
    height: int
    width: int
    bucket: str
    caption: str
    domain: str
    split: str
    scores: dict[str, float]


@dataclass(frozen=True)
class WindowRow(WindowFacts):
    """One window of a dataset, without its tensors, which lie in row `row` of the file `shard`."""

    shard: str
    row: int


def window_columns(window: WindowFacts) -> dict[str, Any]:
    """The columns of `WINDOW_SCHEMA`."""
    values = {f.name: getattr(window, f.name) for f in fields(WindowFacts)}
    return values | {"scores": sorted(window.scores.items())}


def tensor_columns(name: str, value: torch.Tensor) -> dict[str, Any]:
    """A tensor as its two columns: fp16 bytes and shape."""
    array = np.ascontiguousarray(value.detach().cpu().numpy(), dtype="<f2")
    return {name: array.tobytes(), f"{name}_shape": list(array.shape)}


def tensor_from_columns(row: dict[str, Any], name: str) -> torch.Tensor:
    """The fp16 tensor `name` of a row that was read with its shape column."""
    import torch

    return torch.from_numpy(np.frombuffer(row[name], dtype="<f2").astype(np.float16).reshape(row[f"{name}_shape"]))


def row_sha256(row: dict[str, Any], names: Sequence[str]) -> str:
    """Hex sha256 of a row's tensors, in the order of `names`."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(repr((name, [int(n) for n in row[f"{name}_shape"]])).encode())
        digest.update(row[name])
    return digest.hexdigest()


def write_shard(dataset: Storage, family: Family, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write rows (keys of `clip_schema`) as a shard under a name that was never used.

    Returns what a commit records of it: file, sha256, bytes and number of rows.
    """
    schema = clip_schema(family)
    table = pa.Table.from_pylist(rows, schema=schema)
    per_group = max(1, _ROW_GROUP_BYTES * len(rows) // max(1, table.nbytes))
    name = f"shards/{uuid.uuid4().hex}.parquet"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"
        pq.write_table(
            table,
            path,
            row_group_size=per_group,
            use_dictionary=False,
            compression={f.name: "none" if f.name in (*family.tensors, "preview") else "zstd" for f in schema},
            write_statistics=["window_id"],
        )
        entry = {"file": name, "sha256": sha256_file(path), "bytes": path.stat().st_size, "rows": len(rows)}
        dataset.upload(path, name)
    return entry


def write_table(dataset: Storage, name: str, table: pa.Table) -> None:
    """Write a small table as one object."""
    dataset.write_bytes(name, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def table_of(data: bytes) -> pa.Table:
    """The table of a Parquet file's bytes.

    Not by `pyarrow.parquet.read_table`: a thread of Arrow's lets go of the bytes some time after it has returned, and
    where Python ends meanwhile, the process is aborted.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read()


def read_table(dataset: Storage, name: str) -> pa.Table:
    """Read a small table whole. Raises DatasetError when it is damaged."""
    data = dataset.read_bytes(name)
    try:
        return table_of(data)
    except (pa.ArrowException, OSError) as e:
        raise DatasetError(f"{dataset.uri}/{name} is damaged: {e}") from e


def read_parts(dataset: Storage, folder: str) -> list[pa.Table]:
    """The tables in a folder, in the order in which they were stored."""
    return [read_table(dataset, name) for name in dataset.list(folder)]


def write_part(dataset: Storage, folder: str, table: pa.Table) -> None:
    """Store one more table in a folder."""
    write_table(dataset, f"{folder}/{len(dataset.list(folder)):06d}.parquet", table)


def pixels_file(window_id: str) -> str:
    """The object with the lossless frames of a held-out window."""
    return f"pixels/{window_id}.mkv"


def groups_csv(windows: Sequence[WindowRow]) -> str:
    """The text of a groups file, as evaluations read it: which windows belong together, and their captions."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["video", "group", "caption"])
    rows.writerows([w.window_id, w.group, w.caption] for w in windows)
    return table.getvalue()


class ClipsDataset:
    """A complete clips dataset. Make it with `ClipsDataset.open`.

    Attributes:
        storage: where it lies.
        manifest: the parsed `manifest.json`.
        family: of the models that it is encoded for; it says which tensors a row has.
        manifest_sha256: identity of the content: windows, captions, splits and tensors. File names, and the order of
            rows in shards, do not enter it: a dataset that was interrupted and continued has the same identity.
    """

    def __init__(self, storage: Storage, manifest: dict[str, Any]) -> None:
        self.storage = storage
        self.manifest = manifest
        self.family = family_named(manifest.get("family", DEFAULT_FAMILY.name))  # older manifests name none
        self.manifest_sha256 = str(manifest["content_sha256"])

    @classmethod
    def open(cls, storage_location: Storage) -> ClipsDataset:
        """Open the dataset at a location.

        Raises DatasetError when there is none, when it is not complete, or when its schema has another version.
        """
        try:
            manifest = storage_location.read_json("manifest.json")
        except StorageError as e:
            started = any(storage_location.exists(name) for name in ("files.parquet", "plan.parquet"))
            why = "was started but not finished: run its prepare command again" if started else "is no clips dataset"
            raise DatasetError(f"{storage_location.uri} {why} ({e})") from e
        found = manifest.get("schema")
        if found != SCHEMA_VERSION:
            raise DatasetError(
                f"{storage_location.uri} has dataset schema {found!r}, this version reads {SCHEMA_VERSION}; "
                "prepare it again under another name, or use the cinesynth version that wrote it"
            )
        try:
            return cls(storage_location, manifest)
        except ModelError as e:
            raise DatasetError(f"{storage_location.uri}: {e}; use the version that wrote it") from e

    def windows(self, split: Split | None = None) -> list[WindowRow]:
        """Windows of one split (or of all), sorted by window_id."""
        names = [f.name for f in fields(WindowRow)]
        rows = self._index().select(names).to_pylist()
        return sorted(
            (WindowRow(**row | {"scores": dict(row["scores"])}) for row in rows if split in (None, row["split"])),
            key=lambda window: window.window_id,
        )

    def empty_prompt_embeds(self) -> torch.Tensor:
        """Embedding of the empty caption: fp16 [L, D]."""
        entry = self.manifest["empty_prompt"]
        row = read_table(self.storage, entry["file"]).to_pylist()[0]
        self._verify(entry["file"], row_sha256(row, ["prompt_embeds"]), entry["sha256"])
        return tensor_from_columns(row, "prompt_embeds")

    def stage(self, folder: str | os.PathLike[str], split: Split | None = None) -> StagedClips:
        """Copy the shards that hold windows of `split` into a local folder; those already there are kept.

        Raises DatasetError when a shard does not have the sha256 that the manifest records.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        windows = self.windows(split)
        wanted = {window.shard for window in windows}
        with open(folder / ".lock", "w") as lock:  # several processes of a machine stage into one folder
            fcntl.flock(lock, fcntl.LOCK_EX)
            for entry in self.manifest["shards"]:
                if entry["file"] in wanted:
                    self._stage_file(entry, folder / Path(entry["file"]).name)
        return StagedClips(folder, windows, self.family)

    def stage_pixels(self, folder: str | os.PathLike[str], split: Split) -> dict[str, Path]:
        """Copy the lossless videos of a held-out split into a local folder: window_id to file.

        Raises DatasetError for the train split, whose pixels are not kept.
        """
        if split == "train":
            raise DatasetError("pixels are kept of val and test windows only")
        paths = {}
        for window in self.windows(split):
            name = pixels_file(window.window_id)
            paths[window.window_id] = path = Path(folder) / Path(name).name
            if not path.is_file():
                self.storage.download(name, path)
        return paths

    def _stage_file(self, entry: dict[str, Any], target: Path) -> None:
        verified = target.with_suffix(".sha256")  # written after the check, so a later stage need not read it all
        whole = target.is_file() and target.stat().st_size == entry["bytes"]
        if whole and verified.is_file() and verified.read_text() == entry["sha256"]:
            return
        verified.unlink(missing_ok=True)  # it is of a file that is replaced now
        self.storage.download(entry["file"], target)
        self._verify(entry["file"], sha256_file(target), entry["sha256"])
        verified.write_text(entry["sha256"])

    def _index(self) -> pa.Table:
        entry = self.manifest["index"]
        data = self.storage.read_bytes(entry["file"])
        self._verify(entry["file"], hashlib.sha256(data).hexdigest(), entry["sha256"])
        return table_of(data)

    def _verify(self, name: str, found: str, recorded: str) -> None:
        if found != recorded:
            raise DatasetError(
                f"{self.storage.uri}/{name} is damaged: sha256 {found[:12]}, manifest {recorded[:12]}; "
                "delete manifest.json and what is damaged, and run prepare again under another name"
            )


class StagedClips:
    """Encoded windows in local shards, by index, ordered by window_id: the same on every machine.

    Picklable; files are opened where they are read. One row group is read for a window.
    """

    def __init__(self, folder: Path, windows: list[WindowRow], family: Family) -> None:
        self.folder = folder
        self.windows = windows
        self.family = family
        self._files: dict[tuple[int, str], _Shard] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The family's tensors in fp16 (`latents` and `condition_latents` [C, F, h, w], `prompt_embeds` [L, D] at its
        true length, and `image_embeds` [N, D] where there is an image encoder); `caption`, `window_id` and `group`."""
        window = self.windows[index]
        key = (os.getpid(), window.shard)
        if key not in self._files:
            self._files[key] = _Shard(self.folder / Path(window.shard).name, self.family.tensors)
        row = self._files[key].read(window.row)
        if row["window_id"] != window.window_id:
            raise DatasetError(f"{self.folder}: {window.shard} row {window.row} holds another window; stage it again")
        tensors = {name: tensor_from_columns(row, name) for name in self.family.tensors}
        return {**tensors, "caption": window.caption, "window_id": window.window_id, "group": window.group}

    def latent_shape(self, index: int) -> tuple[int, ...]:
        """[C, F, h, w] of a window's latents; nothing is read for it."""
        window = self.windows[index]
        return self.family.latent_shape(window.num_frames, window.height, window.width)

    def window_id(self, index: int) -> str:
        """The window's id; nothing is read for it."""
        return self.windows[index].window_id

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


class _Shard:
    """One open local shard file."""

    def __init__(self, path: Path, tensors: Sequence[str]) -> None:
        self._columns = ["window_id", *(f.name for f in tensor_fields(tensors))]
        self._file = pq.ParquetFile(path, memory_map=True)
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(counts)

    def read(self, row: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        table = self._file.read_row_group(group, columns=self._columns, use_threads=False)
        return table.slice(row - start, 1).to_pylist()[0]
