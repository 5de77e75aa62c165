"""The shipped model: whole, or named with what brings it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cinesynth.errors import ModelError
from cinesynth.wan import folder
from cinesynth.wan.folder import MANIFEST, model_folder, nano_folder, write_manifest


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model where the package would have it."""
    copy = Path(shutil.copytree(nano_folder(), tmp_path / "a package" / "nano"))
    write_manifest(copy)
    monkeypatch.setattr(folder, "SHIPPED", copy)
    return copy


def test_a_whole_model_is_found(shipped: Path) -> None:
    assert model_folder("nano") == shipped


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json"])
def test_a_damaged_file_is_named_with_the_commands_that_bring_it_back(shipped: Path, name: str) -> None:
    damaged = bytearray((shipped / name).read_bytes())
    damaged[-3] ^= 1
    (shipped / name).write_bytes(damaged)
    with pytest.raises(ModelError, match="is damaged") as error:
        model_folder("nano")
    message = str(error.value)
    assert str(shipped / name) in message
    assert "pip install --force-reinstall cinesynth" in message
    assert "make nano" in message


@pytest.mark.parametrize("name", ["text_encoder/model.safetensors", MANIFEST])
def test_a_missing_file_is_named(shipped: Path, name: str) -> None:
    (shipped / name).unlink()
    with pytest.raises(ModelError, match="is missing") as error:
        model_folder("nano")
    assert str(shipped / name) in str(error.value)
