"""Where datasets and adapters lie: what a run recorded counts, not what a folder is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cinesynth.errors import AdapterError, ConfigError, StorageError
from cinesynth.locate import adapter_chain, find_adapter, locate_adapter, pin_adapter, run_output
from cinesynth.registry import Registry
from cinesynth.storage import Storage
from cinesynth.wan.card import CARD_FILE, CONFIG_FILE, DIFFUSERS_FILE, PEFT_FILE, Parent, read_card
from tests.adapters import adapter_folder


def finished_run(storage: Path, name: str, outputs: dict[str, Any]) -> Storage:
    """A storage with one run that has a result."""
    run = storage / "runs" / name
    run.mkdir(parents=True)
    result = {"schema": 1, "kind": "train", "name": name, "inputs": {}, "outputs": outputs, "figures": {}}
    (run / "result.json").write_text(json.dumps(result))
    (run / "run.json").write_text("{}")
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


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("unfinished", "has not finished"),
        ("{folder}/kohya.safetensors", "cannot be read as safetensors"),
        ("{folder}/nowhere", "there is no such folder"),
        ("other.safetensors", "there is no such folder"),
    ],
)
def test_what_is_no_adapter_is_told_as_what_it_is(tmp_path: Path, ref: str, told: str) -> None:
    (tmp_path / "runs" / "unfinished").mkdir(parents=True)
    (tmp_path / "runs" / "unfinished" / "run.json").write_text("{}")
    (tmp_path / "kohya.safetensors").write_bytes(b"x")
    with pytest.raises((AdapterError, StorageError), match=told):
        locate_adapter(Storage.open(tmp_path), ref.format(folder=tmp_path))


def test_a_folder_that_cinesynth_did_not_write_says_so(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"has no card\.json, so it is not an adapter folder"):
        read_card(tmp_path)


@pytest.mark.parametrize("taken", [CARD_FILE, CONFIG_FILE, DIFFUSERS_FILE, PEFT_FILE])
def test_an_imported_file_is_whole_again_after_a_cleaner_took_a_part_of_it(tmp_path: Path, taken: str) -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    file, storage, cache = tmp_path / "other.safetensors", Storage.open(tmp_path), tmp_path / "cache"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 256), f"{layer}.lora_B.weight": torch.ones(256, 2)}, file)
    folder = locate_adapter(storage, str(file), cache)
    before = read_card(folder)
    (folder / taken).unlink()
    assert locate_adapter(storage, str(file), cache) == folder
    assert read_card(folder) == before
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_an_alias_is_pinned_to_the_version_that_it_means_now(tmp_path: Path) -> None:
    adapter = tmp_path / "made"
    adapter.mkdir()
    (adapter / "card.json").write_text("{}")
    storage = Storage.open(tmp_path / "storage")
    first = Registry(storage).publish(adapter, "noir", "v1", alias="best")
    assert pin_adapter(storage, "noir@best") == first.ref == "noir@v1"
    (adapter / "card.json").write_text('{"a": 1}')
    Registry(storage).publish(adapter, "noir", "v2", alias="best")
    assert pin_adapter(storage, "noir@best") == "noir@v2"
    assert pin_adapter(storage, str(adapter)) == str(adapter)


def test_parents_are_found_by_their_hash_and_put_before(tmp_path: Path) -> None:
    style = adapter_folder(tmp_path / "style", "b", []).sha256
    storage = finished_run(tmp_path, "motion", {"adapter": str(tmp_path / "runs" / "motion" / "adapter")})
    of_run = tmp_path / "runs" / "motion" / "adapter"
    motion = adapter_folder(of_run, "b", [Parent(sha256=style, scale=0.5)]).sha256
    (tmp_path / "runs" / "motion" / "trained.json").write_text(json.dumps({"adapter_sha256": motion}))
    with pytest.raises(AdapterError, match="'motion' was trained on top of another"):
        adapter_chain(storage, [("motion", 1.0)])
    Registry(storage).publish(tmp_path / "style", "noir", "v1")
    assert adapter_chain(storage, [("motion", 1.0)]) == [("noir@v1", 0.5), ("motion", 1.0)]
    given = [(str(tmp_path / "style"), 0.5), ("motion", 1.0)]
    assert adapter_chain(storage, given) == given
    assert find_adapter(storage, motion) == "motion"
    assert find_adapter(storage, "0" * 64) is None
    assert adapter_chain(storage, []) == []


def test_workers_import_no_plotting_and_no_pages() -> None:
    code = (
        "import sys, cinesynth.train.worker, cinesynth.generate.rank\n"
        "print([m for m in sys.modules if m.startswith(('matplotlib', 'cinesynth.report'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
