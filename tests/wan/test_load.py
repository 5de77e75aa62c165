"""Loading a model by name, folder or hub id; damaged and foreign ones are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cinesynth.errors import ModelError
from cinesynth.nano.architecture import build_nano
from cinesynth.wan.folder import (
    base_hash,
    encoder_hash,
    model_folder,
    model_hash,
    model_spec,
    pinned_model,
    split_revision,
)
from cinesynth.wan.load import load_scheduler, load_transformer


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("nano"), tmp_path / "a model"))


def test_nano_has_wans_shape_within_its_budget() -> None:
    spec = model_spec("nano")
    assert spec.heads % 4 == 0
    assert spec.family.latent_shape(33, 64, 96) == (16, 9, 8, 12)
    folder = model_folder("nano")
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 24e6
    transformer = load_transformer("nano")
    assert transformer.config.in_channels == 36
    assert 2e6 <= sum(p.numel() for p in transformer.parameters()) <= 8e6


def test_random_nano_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    first, again, other = (build_nano(tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1)))
    assert model_hash(str(first)) == model_hash(str(again))
    assert base_hash(str(first)) != base_hash(str(other))
    assert encoder_hash(str(first)) != encoder_hash(str(other))


def test_hashes_tell_transformer_and_encoders_apart(copy: Path) -> None:
    assert (model_hash(str(copy)), base_hash(str(copy))) == (model_hash("nano"), base_hash("nano"))
    (copy / "vae" / "config.json").write_text((copy / "vae" / "config.json").read_text() + " ")
    assert base_hash(str(copy)) == base_hash("nano")
    assert encoder_hash(str(copy)) != encoder_hash("nano")
    assert model_hash(str(copy)) != model_hash("nano")


def test_a_truncated_weight_file_is_named(copy: Path) -> None:
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="component 'transformer'"):
        load_transformer(str(copy))


def test_a_missing_component_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "image_encoder")
    with pytest.raises(ModelError, match="'image_encoder' is missing"):
        model_folder(str(copy))


def test_a_text_to_video_transformer_is_refused(copy: Path) -> None:
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 16, "image_dim": None}))
    with pytest.raises(ModelError, match=r"not a Wan2\.1 image-to-video transformer"):
        model_folder(str(copy))


def test_a_hub_id_is_pinned_to_its_commit(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    copy.rename(snapshot)
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None = None, **_: object) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert pinned_model("a/b") == "a/b@0123abcd"
    assert model_folder("a/b@0123abcd") == snapshot
    assert asked[-1] == ("a/b", "0123abcd")
    assert split_revision("a/b@0123abcd") == ("a/b", "0123abcd")
    assert pinned_model("nano") == "nano"
    assert pinned_model(str(snapshot)) == str(snapshot)
    (tmp_path / "at@home").mkdir()
    assert split_revision(str(tmp_path / "at@home")) == (str(tmp_path / "at@home"), None)


def test_a_folder_that_is_no_model_and_an_unknown_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        model_folder(str(tmp_path))
    with pytest.raises(ModelError, match="neither 'nano', nor an existing folder, nor a hub id"):
        model_folder("nanoo")
    with pytest.raises(ModelError, match="not in the hub cache"):
        model_folder("cinesynth-tests/does-not-exist")


def test_flow_shift_overrides_the_models_own() -> None:
    default, shifted = load_scheduler("nano"), load_scheduler("nano", 3.0)
    default.set_timesteps(4)
    shifted.set_timesteps(4)
    assert not torch.equal(default.sigmas, shifted.sigmas)
    # sigma' = k s / (1 + (k - 1) s) at the second of four steps of the unshifted schedule
    s = default.sigmas[1] / (5 - 4 * default.sigmas[1])  # undo shift 5
    assert shifted.sigmas[1].item() == pytest.approx((3 * s / (1 + 2 * s)).item(), abs=1e-4)
