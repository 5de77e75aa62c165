"""Kept rows and checks: bit for bit what was computed, or passed over, or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cinesynth.data.video import VideoFacts
from cinesynth.errors import StorageError
from cinesynth.metrics.kept import KeptRow, KeptRows, KeptWork, RowKey
from cinesynth.storage import Storage

NETWORK = {"network": "i3d", "version": 1, "weights": {"i3d.ckpt": "a" * 64}, "preprocessing": {}}
KEY = RowKey("1" * 64, 0, 17)


def rows(folder: Path, **changes: object) -> KeptRows:
    return KeptWork(Storage.open(folder)).rows_of(NETWORK | changes)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "features").rglob("*") if path.is_file())


@pytest.mark.parametrize("shape", [(), (4,), (3, 5)])
@pytest.mark.parametrize("of_float32", [True, False])
def test_a_kept_row_is_the_computed_one_bit_for_bit(tmp_path: Path, shape: tuple[int, ...], of_float32: bool) -> None:
    row = np.random.default_rng(0).normal(size=shape)
    row = np.asarray(row.astype(np.float32) if of_float32 else row, np.float64)
    rows(tmp_path).write(KEY, KeptRow(row, "cpu"))
    found = rows(tmp_path).read([KEY])[KEY]
    assert found.row.tobytes() == row.tobytes()
    assert (found.row.shape, found.row.dtype, found.device) == (shape, np.float64, "cpu")
    (file,) = files(tmp_path)
    with np.load(file) as held:
        assert held["row"].dtype == (np.float32 if of_float32 else np.float64)


def test_a_float32_row_of_i3d_takes_three_kilobytes(tmp_path: Path) -> None:
    rows(tmp_path).write(KEY, KeptRow(np.zeros(400), "cpu"))
    assert files(tmp_path)[0].stat().st_size < 3000


def test_values_beyond_float32_are_kept_too(tmp_path: Path) -> None:
    row = np.array([1e300, np.inf, -0.0])
    rows(tmp_path).write(KEY, KeptRow(row, "cpu"))
    assert rows(tmp_path).read([KEY])[KEY].row.tobytes() == row.tobytes()


def test_whatever_a_row_depends_on_keeps_it_apart(tmp_path: Path) -> None:
    of = rows(tmp_path)
    others = [
        RowKey("2" * 64, 0, 17),
        RowKey("1" * 64, 1, 17),
        RowKey("1" * 64, 0, 16),
        RowKey("1" * 64, 0, 17, real="3" * 64),
        RowKey("1" * 64, 0, 17, caption="4" * 64),
    ]
    of.write(KEY, KeptRow(np.zeros(3), "cpu"))
    assert of.read(others) == {}
    for change in ({"weights": {"i3d.ckpt": "b" * 64}}, {"version": 2}, {"preprocessing": {"resize": 256}}):
        assert rows(tmp_path, **change).read([KEY]) == {}
    assert of.read([KEY, *others]).keys() == {KEY}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"no zip file",
        lambda data: data.replace(np.float32(7).tobytes(), np.float32(8).tobytes(), 1),
    ],
    ids=["cut", "empty", "another", "a byte"],
)
def test_a_damaged_row_is_told_of_and_passed_over(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    of, other = rows(tmp_path), RowKey("2" * 64, 0, 17)
    of.write(KEY, KeptRow(np.full(50, 7.0), "cpu"))
    (file,) = files(tmp_path)
    of.write(other, KeptRow(np.ones(3), "cpu"))
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    with caplog.at_level(logging.WARNING):
        assert of.read([KEY, other]).keys() == {other}
    assert f"{file} is damaged" in caplog.text
    of.write(KEY, KeptRow(np.full(50, 7.0), "cpu"))
    assert of.read([KEY])[KEY].row.tolist() == [7.0] * 50


def test_features_of_other_weights_under_this_name_are_refused_with_both(tmp_path: Path) -> None:
    other = rows(tmp_path, weights={"i3d.ckpt": "b" * 64})
    other.write(KEY, KeptRow(np.ones(3), "cpu"))
    (theirs,) = files(tmp_path)
    of = rows(tmp_path)
    of.write(KEY, KeptRow(np.zeros(3), "cpu"))
    (ours,) = set(files(tmp_path)) - {theirs}
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(StorageError, match=f"features of other weights.*{'b' * 64}.*, not .*{'a' * 64}") as refused:
        of.read([KEY])
    assert str(ours) in str(refused.value)


def test_checks_are_kept_by_content_and_by_how_much_was_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, facts = KeptWork(Storage.open(tmp_path)), VideoFacts(17, 96, 64, 16.0, "ffv1")
    kept.keep_facts("1" * 64, None, facts)
    assert kept.facts("1" * 64, None) == facts
    assert kept.facts("1" * 64, 17) is None
    assert kept.facts("2" * 64, None) is None
    (file,) = files(tmp_path)
    changed = json.loads(file.read_text())
    changed["facts"]["num_frames"] = 9
    for data in (json.dumps(changed), "{", "[]"):
        file.write_text(data)
        assert kept.facts("1" * 64, None) is None
    assert caplog.text.count("is damaged") == 3
