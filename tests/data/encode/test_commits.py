"""What arrives encoded is committed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cinesynth.data.encode.commits import Commits, ShardWriter
from cinesynth.errors import StorageError
from cinesynth.storage import Storage
from cinesynth.wan.folder import model_spec


def test_an_error_of_the_writer_releases_the_graph_while_the_error_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def endless() -> Iterator[Any]:
        try:
            while True:
                yield SimpleNamespace(blocks=[])
        finally:
            released.set()

    def full(*_: Any) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(ShardWriter, "_add", full)
    storage = Storage.open(tmp_path)
    writer = ShardWriter(storage, Commits(storage), model_spec("nano").family, "hash", 1e6, 1.0, lambda *_: None)
    with pytest.raises(StorageError) as kept:
        writer.run(endless())
    assert released.wait(10)
    assert kept.value.__traceback__ is not None
