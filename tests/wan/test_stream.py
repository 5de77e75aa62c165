"""Weights that are read tensor by tensor are what diffusers loads."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from cinesynth.errors import ModelError
from cinesynth.wan.folder import model_folder
from cinesynth.wan.load import load_transformer, prepare_attention
from cinesynth.wan.padding import CollapsedPadding
from cinesynth.wan.stream import StoredWeights

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("nano"), tmp_path / "a model"))


def rewrite(model: Path, change: Any) -> None:
    path = model / "transformer" / FILE
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_dtypes_are_those_that_diffusers_loads(dtype: torch.dtype) -> None:
    theirs = WanTransformer3DModel.from_pretrained(model_folder("nano") / "transformer", torch_dtype=dtype)
    ours = load_transformer("nano", dtype)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    for (name, buffer), (_, other) in zip(theirs.named_buffers(), ours.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    assert StoredWeights("nano", dtype).bytes == sum(v.numel() * v.element_size() for v in expected.values())


def test_weights_in_several_files_are_found_by_their_index(copy: Path) -> None:
    folder = copy / "transformer"
    tensors = load_file(folder / FILE)
    names = sorted(tensors)
    parts = {"part-1.safetensors": names[: len(names) // 2], "part-2.safetensors": names[len(names) // 2 :]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    (folder / FILE).unlink()
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    whole, split = load_transformer("nano").state_dict(), load_transformer(str(copy)).state_dict()
    assert all(torch.equal(whole[name], split[name]) for name in whole)
    (folder / "part-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"part-2\.safetensors is missing"):
        StoredWeights(str(copy))


def test_a_missing_tensor_another_shape_and_fp8_are_refused(copy: Path) -> None:
    name = "blocks.0.attn1.to_q.weight"
    rewrite(copy, lambda tensors: tensors.update({name: tensors[name][:8].contiguous()}))
    with pytest.raises(ModelError, match=r"to_q\.weight is \(8, 256\), the configuration says \(256, 256\)"):
        load_transformer(str(copy))
    rewrite(copy, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=r"to_q\.weight is missing"):
        load_transformer(str(copy))
    other = "blocks.1.attn1.to_q.weight"
    rewrite(copy, lambda tensors: tensors.update({other: tensors[other].to(torch.float8_e4m3fn)}))
    with pytest.raises(ModelError, match=r"dtype F8_E4M3 \(blocks\.1\.attn1\.to_q\.weight"):
        StoredWeights(str(copy))


def test_rows_are_those_of_the_tensor() -> None:
    weights = StoredWeights("nano")
    name = "blocks.2.ffn.net.0.proj.weight"
    assert torch.equal(weights.read(name, slice(100, 164)), weights.read(name)[100:164])


def test_reading_holds_less_than_two_blocks_beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = StoredWeights("nano")
    transformer = weights.empty_transformer()
    block = sum(p.numel() * p.element_size() for p in transformer.blocks[0].parameters())
    held, most = 0, 0
    read = weights.read

    def released(size: int) -> None:
        nonlocal held
        held -= size

    def counting(name: str, rows: slice | None = None) -> torch.Tensor:
        nonlocal held, most
        value = read(name, rows)
        held += value.nbytes
        most = max(most, held)
        weakref.finalize(value, released, value.nbytes)
        return value

    monkeypatch.setattr(weights, "read", counting)
    weights.fill(transformer, "meta")  # a device that keeps nothing
    gc.collect()
    assert 0 < most < 2 * block


def test_attention_is_chosen_by_the_device_that_computes_wherever_the_weights_lie() -> None:
    for device, collapsed in (("cpu", True), ("cuda:1", False)):
        transformer = StoredWeights("nano").empty_transformer()
        prepare_attention(transformer, "nano", device)
        processors = {isinstance(block.attn2.processor, CollapsedPadding) for block in transformer.blocks}
        assert processors == {collapsed}
