"""The dataset on disk: round trip, plain readability, versions, damage, staging; on a local folder and on S3."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cinesynth.data.dataset import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    SPLITS,
    ClipsDataset,
    row_sha256,
    table_bytes,
    tensor_columns,
    window_columns,
    write_shard,
    write_table,
)
from cinesynth.data.records import Window
from cinesynth.errors import DatasetError
from cinesynth.storage import Storage
from cinesynth.wan.family import WAN21_I2V


def _window(i: int) -> Window:
    split = SPLITS[i % 3]
    name = hashlib.sha256(str(i).encode()).hexdigest()
    span = tuple(range(i, i + 5))
    return Window(
        name, f"/footage/{i // 2}.mp4", "ab" * 32, f"shot-{i}", f"group-{i // 2}", i / 16, (i + 5) / 16, 16, 5, 32, 48,
        "48x32x5", f"caption {i}", "film", split, {"blur": 0.5}, f"/footage/{i // 2}.mp4", (0, 0),
        span, (0.0, 0.0, 48.0, 32.0),
    )  # fmt: skip


def _tensors(i: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    shapes = {"latents": (16, 2, 4, 6), "condition_latents": (16, 2, 4, 6), "image_embeds": (17, 64)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    values["prompt_embeds"] = torch.randn(3 + i % 4, 64, generator=generator)
    values["latents"][-1, -1, -1] = 0  # bytes that end in zeros
    return values


def _write(storage: Storage, count: int = 12) -> dict[str, Any]:
    """A dataset of `count` windows in shards of 5, as prepare leaves it; returns its manifest."""
    shards, places = [], []
    windows = [_window(i) for i in range(count)]
    for start in range(0, count, 5):
        rows = []
        for i in range(start, min(start + 5, count)):
            row = _row(windows[i]) | {"preview": b"jpeg\0"}
            for name, value in _tensors(i).items():
                row |= tensor_columns(name, value)
            rows.append(row)
        shards.append(write_shard(storage, WAN21_I2V, rows))
        places += [{"shard": shards[-1]["file"], "row": k} for k in range(len(rows))]
    index = [window_columns(w) | place for w, place in zip(windows, places, strict=True)]
    write_table(storage, "index.parquet", pa.Table.from_pylist(index, schema=INDEX_SCHEMA))
    empty = tensor_columns("prompt_embeds", _empty())
    write_table(storage, "prompts/0.parquet", pa.Table.from_pylist([empty]))
    manifest = {
        "schema": SCHEMA_VERSION,
        "content_sha256": "c" * 64,
        "index": {"file": "index.parquet", "sha256": storage.sha256("index.parquet")},
        "empty_prompt": {"file": "prompts/0.parquet", "sha256": row_sha256(empty, ["prompt_embeds"])},
        "shards": shards,
    }
    storage.write_json("manifest.json", manifest)
    return manifest


def _row(window: Window) -> dict[str, Any]:
    return window_columns(window) | {"frame_pts": window.frame_pts, "box": window.box, "encoder_hash": "e"}


def _empty() -> torch.Tensor:
    return torch.linspace(-1, 1, 64)[None]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage.open(tmp_path / "data set")
    return Storage.open(request.getfixturevalue("s3")).child("datasets", tmp_path.name)


def test_windows_are_staged_and_read_by_index_in_the_order_of_their_ids(storage: Storage, tmp_path: Path) -> None:
    _write(storage)
    dataset = ClipsDataset.open(storage)
    by_id = {_window(i).window_id: i for i in range(12)}
    for split in SPLITS:
        clips = dataset.stage(tmp_path / "staged", split)
        assert len(clips) == 4
        items = [clips[i] for i in range(len(clips))]
        assert [item["window_id"] for item in items] == sorted(
            _window(i).window_id for i in range(12) if _window(i).split == split
        )
        for item in items:
            i = by_id[item["window_id"]]
            assert (item["caption"], item["group"]) == (f"caption {i}", f"group-{i // 2}")
            for name, value in _tensors(i).items():
                assert item[name].dtype == torch.float16
                assert torch.equal(item[name], value.half()), name
    assert torch.equal(dataset.empty_prompt_embeds(), _empty().half())
    assert [w.window_id for w in dataset.windows()] == sorted(by_id)
    assert dataset.windows()[0].scores == {"blur": 0.5}


def test_shards_are_plain_parquet(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    manifest = _write(storage)
    table = pq.read_table(tmp_path / manifest["shards"][0]["file"])
    assert table.schema.metadata[b"cinesynth.schema"] == str(SCHEMA_VERSION).encode()
    row = table.to_pylist()[2]
    assert row["scores"] == [("blur", 0.5)]
    assert row["frame_pts"] == [2, 3, 4, 5, 6]
    latents = np.frombuffer(row["latents"], "<f2").reshape(row["latents_shape"])
    assert np.array_equal(latents, _tensors(2)["latents"].half().numpy())


def test_row_groups_are_small_so_that_one_window_is_read_without_the_others(tmp_path: Path) -> None:
    rows = []
    for i in range(8):
        row = _row(_window(i)) | {"preview": b""}
        for name in WAN21_I2V.tensors:
            row |= tensor_columns(name, torch.zeros(300_000))  # 2.4 MB a row
        rows.append(row)
    entry = write_shard(Storage.open(tmp_path), WAN21_I2V, rows)
    assert pq.ParquetFile(tmp_path / entry["file"]).num_row_groups == 8


def test_staged_files_are_kept_and_staged_clips_can_be_pickled(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "dataset")
    _write(storage)
    clips = ClipsDataset.open(storage).stage(tmp_path / "staged", "train")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "staged").glob("*.parquet")}
    assert before
    first = clips[0]
    again = ClipsDataset.open(storage).stage(tmp_path / "staged", "train")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "staged").glob("*.parquet")} == before
    for copy in (again, pickle.loads(pickle.dumps(clips))):
        assert torch.equal(copy[0]["latents"], first["latents"])


def test_a_shard_that_is_staged_again_and_damaged_is_refused_each_time(tmp_path: Path) -> None:
    storage, staged = Storage.open(tmp_path / "dataset"), tmp_path / "staged"
    name = _write(storage)["shards"][0]["file"]
    ClipsDataset.open(storage).stage(staged)
    (staged / Path(name).name).unlink()
    data = bytearray(storage.read_bytes(name))
    data[len(data) // 2] ^= 1
    storage.write_bytes(name, bytes(data))
    for _ in range(2):
        with pytest.raises(DatasetError, match="is damaged"):
            ClipsDataset.open(storage).stage(staged)


def test_a_damaged_shard_and_a_damaged_index_are_refused(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "dataset")
    manifest = _write(storage)
    name = manifest["shards"][0]["file"]
    data = bytearray(storage.read_bytes(name))
    data[len(data) // 2] ^= 1
    storage.write_bytes(name, bytes(data))
    with pytest.raises(DatasetError, match="is damaged"):
        ClipsDataset.open(storage).stage(tmp_path / "staged", "train")
    storage.write_bytes("index.parquet", b"PAR1")
    with pytest.raises(DatasetError, match=r"index\.parquet is damaged"):
        ClipsDataset.open(storage).windows()


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.write_json("manifest.json", _write(storage) | {"schema": SCHEMA_VERSION + 1})
    with pytest.raises(DatasetError, match=f"schema {SCHEMA_VERSION + 1}, this version reads {SCHEMA_VERSION}"):
        ClipsDataset.open(storage)


def test_a_missing_and_an_unfinished_dataset_are_told_apart(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    with pytest.raises(DatasetError, match="is no clips dataset"):
        ClipsDataset.open(storage)
    storage.write_bytes("plan.parquet", b"")
    with pytest.raises(DatasetError, match="run its prepare command again"):
        ClipsDataset.open(storage)


def test_pixels_of_training_windows_are_not_kept(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    _write(storage)
    with pytest.raises(DatasetError, match="val and test"):
        ClipsDataset.open(storage).stage_pixels(tmp_path / "pixels", "train")


def test_the_row_hash_covers_values_and_shapes() -> None:
    row = {key: value for name, tensor in _tensors(1).items() for key, value in tensor_columns(name, tensor).items()}
    reshaped = row | {"latents_shape": [2, 16, 4, 6]}
    changed = row | tensor_columns("latents", _tensors(2)["latents"])
    assert len({row_sha256(r, WAN21_I2V.tensors) for r in (row, reshaped, changed)}) == 3


@pytest.mark.slow
@pytest.mark.beside
def test_a_process_that_ends_just_after_it_read_a_table_ends_well(tmp_path: Path) -> None:
    """A thread of Arrow's that still had the bytes aborted one in six."""
    file = tmp_path / "table.parquet"
    rows = [{"name": f"{i}", "numbers": list(range(i % 9)), "text": "a" * 300} for i in range(200)]
    file.write_bytes(table_bytes(pa.Table.from_pylist(rows)))
    code = f"""
from pathlib import Path
from cinesynth.data.dataset import table_of
for _ in range(3):
    assert table_of(Path({str(file)!r}).read_bytes()).num_rows == 200
"""
    for _ in range(10):
        ended = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
        assert [(process.communicate()[1], process.returncode) for process in ended] == [("", 0)] * 3
