"""Where datasets and adapters lie: what a run recorded counts, not what a folder is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cinesynth.errors import AdapterError, ConfigError
from cinesynth.locate import locate_adapter, run_output
from cinesynth.storage import Storage


def finished_run(storage: Path, name: str, outputs: dict[str, Any]) -> Storage:
    """A storage with one run that has a result."""
    run = storage / "runs" / name
    run.mkdir(parents=True)
    result = {"schema": 1, "kind": "train", "name": name, "inputs": {}, "outputs": outputs, "figures": {}}
    (run / "result.json").write_text(json.dumps(result))
    return Storage.open(storage)


def test_an_adapter_is_where_its_run_recorded_it(tmp_path: Path) -> None:
    best = tmp_path / "runs" / "style" / "steps" / "best"
    storage = finished_run(tmp_path, "style", {"adapter": str(best)})
    (tmp_path / "runs" / "style" / "adapter").mkdir()
    assert locate_adapter(storage, "style") == best


def test_an_adapter_is_found_after_the_storage_was_moved(tmp_path: Path) -> None:
    storage = finished_run(tmp_path / "new", "style", {"adapter": "/old/place/runs/style/adapter"})
    assert locate_adapter(storage, "style") == tmp_path / "new" / "runs" / "style" / "adapter"


def test_an_output_outside_the_run_is_opened_where_it_is(tmp_path: Path) -> None:
    storage = finished_run(tmp_path, "style", {"adapter": str(tmp_path / "elsewhere")})
    found = run_output(storage, "style", "adapter")
    assert found is not None
    assert found.uri == str(tmp_path / "elsewhere")


def test_a_run_without_an_adapter_says_so(tmp_path: Path) -> None:
    storage = finished_run(tmp_path, "clips", {"dataset": "x"})
    with pytest.raises(ConfigError, match="made no adapter"):
        locate_adapter(storage, "clips")


def test_what_is_neither_folder_nor_run_is_looked_up_in_the_registry(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not published"):
        locate_adapter(Storage.open(tmp_path), "noir@latest")


def test_workers_import_no_plotting_and_no_pages() -> None:
    code = (
        "import sys, cinesynth.train.worker, cinesynth.generate.worker\n"
        "print([m for m in sys.modules if m.startswith(('matplotlib', 'cinesynth.report'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
