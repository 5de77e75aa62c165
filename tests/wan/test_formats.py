"""Adapters as files of other programs, and back: the same outputs, by our loader and by diffusers' own converters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file, save_file

from cinesynth.config import PublishConfig
from cinesynth.errors import AdapterError
from cinesynth.locate import adapter_chain, locate_adapter
from cinesynth.publish import publish
from cinesynth.registry import Registry
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from cinesynth.wan.adapter import factors_of, load_adapters, read_adapter
from cinesynth.wan.card import DIFFUSERS_FILE, Parent, read_card
from cinesynth.wan.chain import concatenate
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash
from cinesynth.wan.formats import Format, export_adapter, import_adapter, native_name
from cinesynth.wan.load import load_transformer
from cinesynth.wan.parameters import linear_layers
from tests.wan.test_adapter import output
from tests.wan.test_chain import make

BASE = base_hash("nano")
FORMATS: tuple[Format, ...] = get_args(Format)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`style`, on cross-attention only, of alpha 8 and rank 4; `chain`: it and one on all layers, as one adapter."""
    folder = tmp_path_factory.mktemp("formats")
    make(folder / "style", 4, "cross_attention", 1, [])
    parent = Parent(sha256=read_card(folder / "style").sha256, scale=0.7)
    make(folder / "motion", 2, "all", 2, [parent])
    concatenate([(folder / "style", 0.7), (folder / "motion", 1.0)], BASE, folder / "chain")
    return folder


def outputs(*adapters: Path) -> torch.Tensor:
    transformer = load_transformer("nano")
    load_adapters(transformer, [(adapter, 1.0) for adapter in adapters], BASE)
    return output(transformer)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("adapter", ["style", "chain"])
def test_a_file_is_read_back_as_the_same_function(folder: Path, tmp_path: Path, adapter: str, format: Format) -> None:
    file = tmp_path / "other.safetensors"
    export_adapter(folder / adapter, format, file)
    card = import_adapter(file, tmp_path / "back")
    assert card.config["imported"]["format"] == format
    assert (card.base_model, card.base_sha256, card.dataset) == ("unknown", "", "unknown")
    ours, back, plain = outputs(folder / adapter), outputs(tmp_path / "back"), outputs()
    assert close(back, ours)
    assert not torch.allclose(ours, plain, atol=1e-3)
    rescaled, _ = read_adapter(tmp_path / "back")
    assert rescaled.lora_alpha != rescaled.r or adapter == "chain"  # alpha came with it


@pytest.mark.parametrize("format", FORMATS)
def test_diffusers_reads_the_same_function(folder: Path, tmp_path: Path, format: Format) -> None:
    export_adapter(folder / "chain", format, tmp_path / "lora.safetensors")
    transformer = load_transformer("nano")
    plain = output(transformer)
    state, metadata = WanImageToVideoPipeline.lora_state_dict(
        str(tmp_path), weight_name="lora.safetensors", return_lora_metadata=True
    )
    transformer.load_lora_adapter(state, prefix="transformer", metadata=metadata)
    theirs = output(transformer)
    assert not torch.allclose(theirs, plain, atol=1e-3)
    assert close(theirs, outputs(folder / "chain"))


def test_every_layer_has_a_native_name_of_its_own() -> None:
    names = [native_name(name) for name in linear_layers(load_transformer("nano"))]
    assert len({*names, *(name.replace(".", "_") for name in names)}) == 2 * len(names)
    targets = [suffix for group in WAN21_I2V.adapter_targets.values() for suffix in group]
    assert all(native_name(f"blocks.3.{suffix}").startswith("blocks.3.") for suffix in targets)
    with pytest.raises(AdapterError, match="only format diffusers can hold it"):
        native_name("blocks.0.attn3.to_q")


def test_files_of_others_are_adapters_and_parents_and_are_published(folder: Path, tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "storage")
    file = tmp_path / "community.safetensors"
    export_adapter(folder / "style", "kohya", file)
    found = locate_adapter(storage, str(file), tmp_path / "cache")
    assert locate_adapter(storage, str(file), tmp_path / "cache") == found
    assert adapter_chain(storage, [(str(file), 0.5)]) == [(str(file), 0.5)]
    values = {"name": "p", "storage": str(tmp_path / "storage"), "adapter": str(file), "adapter_name": "community"}
    done = publish(parse_config(PublishConfig, values))
    published = locate_adapter(storage, "community", tmp_path / "cache")
    assert close(outputs(published), outputs(folder / "style"))
    card = Registry(storage).resolve(done["outputs"]["adapter"]).card
    assert card["config"]["imported"]["file"] == "community.safetensors"
    child = make(tmp_path / "child", 2, ("self",), 3, [Parent(sha256=read_card(published).sha256, scale=1.0)])
    chain = adapter_chain(storage, [(str(child), 1.0)])
    assert chain[0] == (done["outputs"]["adapter"], 1.0)
    transformer = load_transformer("nano")
    load_adapters(transformer, [(locate_adapter(storage, ref, tmp_path / "cache"), s) for ref, s in chain], BASE)
    assert not torch.allclose(output(transformer), outputs(published), atol=1e-3)


def test_exports_lie_beside_what_was_published(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {"name": "p", "storage": str(tmp_path), "adapter": str(folder / "chain"), "adapter_name": "film"}
    assert publish(parse_config(PublishConfig, values))["outputs"].keys() == {"adapter"}
    with caplog.at_level("INFO", logger="cinesynth"):
        done = publish(parse_config(PublishConfig, values | {"exports": ["comfyui", "kohya"]}))
    assert "LoraLoaderModelOnly" in caplog.text
    assert "musubi-tuner" in caplog.text
    import_adapter(done["outputs"]["export/comfyui"], tmp_path / "back")
    assert close(outputs(tmp_path / "back"), outputs(folder / "chain"))
    assert publish(parse_config(PublishConfig, values | {"exports": ["kohya"]})) == done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diffusion_model.blocks.0.self_attn.q.diff_b": torch.zeros(4)}, r"1 of its \d+ tensors are no LoRA factors"),
        ({"diffusion_model.blocks.0.mystery.lora_A.weight": torch.zeros(4, 4)}, "such as .*mystery"),
        ({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 4)}, "lacks one of its two factors"),
        (
            {"diffusion_model.blocks.0.cross_attn.q.lora_A.weight": torch.zeros(4, 256).to(torch.float8_e4m3fn)},
            "is in fp8",
        ),
    ],
)
def test_what_is_not_a_plain_lora_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    file = tmp_path / "other.safetensors"
    export_adapter(folder / "style", "comfyui", file)
    save_file(load_file(file) | change, file)
    with pytest.raises(AdapterError, match=message):
        import_adapter(file, tmp_path / "back")


def test_patterns_of_alpha_are_ends_of_names(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    said = {"transformer.r": 4, "transformer.lora_alpha": 2.0, "transformer.alpha_pattern": {"attn2.to_q": 6.0}}
    save_file(load_file(folder / "style" / DIFFUSERS_FILE), file, {"lora_adapter_metadata": json.dumps(said)})
    import_adapter(file, tmp_path / "back")
    alphas = {name: alpha for name, (_, _, alpha) in factors_of(*read_adapter(tmp_path / "back")).items()}
    assert {alpha for name, alpha in alphas.items() if name.endswith(".attn2.to_q")} == {6.0}
    assert {alpha for name, alpha in alphas.items() if not name.endswith(".attn2.to_q")} == {2.0}


def test_other_files_are_told_as_what_they_are(tmp_path: Path) -> None:
    save_file({"lora_te_text_model.lora_up.weight": torch.zeros(1)}, tmp_path / "sd.safetensors")
    with pytest.raises(AdapterError, match="none of the keys of diffusers, comfyui, kohya"):
        import_adapter(tmp_path / "sd.safetensors", tmp_path / "a")
    (tmp_path / "lora.pt").write_bytes(b"PK\x03\x04 pickled")
    with pytest.raises(AdapterError, match=r"cannot be read as safetensors: .*give a \.safetensors file"):
        import_adapter(tmp_path / "lora.pt", tmp_path / "b")
