"""Adapters: fresh ones change nothing, trained ones load everywhere, wrong ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

from cinesynth.config import SamplerSettings
from cinesynth.errors import AdapterError, ModelError
from cinesynth.generate.sampler import Generator
from cinesynth.nano.architecture import LAYERS
from cinesynth.storage import sha256_file
from cinesynth.wan.adapter import load_adapters, save_adapter
from cinesynth.wan.card import CONFIG_FILE, DIFFUSERS_FILE, AdapterCard, Parent, read_card
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash, model_folder
from cinesynth.wan.load import load_transformer
from cinesynth.wan.lora import Targets, add_lora, target_modules, told_modules
from cinesynth.wan.merging import Merging
from cinesynth.wan.stream import StoredWeights
from tests.adapters import adapter_state
from tests.nano_clips import FRAMES, HEIGHT, WIDTH, encoded_clips

SAMPLER = SamplerSettings(steps=3, guidance_scale=1.0, seed=7)


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 36, 3, 8, 12, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 512, 64, generator=generator),
        "encoder_hidden_states_image": torch.randn(1, 17, 64, generator=generator),
    }


def output(transformer: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return transformer(**inputs(), return_dict=False)[0]


def card(parents: list[Parent] | None = None) -> AdapterCard:
    return AdapterCard(
        base_model="nano",
        base_sha256=base_hash("nano"),
        parents=parents or [],
        stage="style",
        dataset="d",
        dataset_sha256="0" * 64,
        config={},
        step=1,
    )


def make_adapter(folder: Path, seed: int, parents: list[Parent] | None = None) -> Path:
    """An adapter whose B matrices are not zero."""
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets="cross_attention", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    state = adapter_state(transformer)
    for key, value in state.items():
        if "lora_B" in key:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    save_adapter(folder, state, transformer.peft_config["default"], card(parents))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "a", seed=1)


@pytest.fixture(scope="module")
def base_output() -> torch.Tensor:
    return output(load_transformer("nano"))


def test_cross_attention_includes_the_image_branch() -> None:
    names = target_modules(WAN21_I2V, load_transformer("nano"), "cross_attention")
    assert len(names) == LAYERS * 6
    assert {n.split(".", 2)[2] for n in names} == {
        f"attn2.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
    }
    assert len(target_modules(WAN21_I2V, load_transformer("nano"), "all")) == LAYERS * 12


def test_layers_are_named_by_groups_or_by_a_regular_expression() -> None:
    transformer = load_transformer("nano")
    of_self = target_modules(WAN21_I2V, transformer, ("self",))
    assert {n.split(".", 2)[2] for n in of_self} == {f"attn1.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")}
    both = target_modules(WAN21_I2V, transformer, ("image", "ffn"))
    assert len(both) == LAYERS * 4
    chosen = target_modules(WAN21_I2V, transformer, r"^blocks\.[01]\.attn2\.to_[qk]$")
    assert told_modules(chosen) == "4 layers (attn2.to_k, attn2.to_q in 2 blocks)"
    with pytest.raises(ModelError, match=r"no linear layer of the transformer matches 'attn9'"):
        target_modules(WAN21_I2V, transformer, "attn9")


def test_a_fresh_adapter_changes_nothing_at_all(base_output: torch.Tensor) -> None:
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=8, alpha=16, targets="all", seed=0)
    assert torch.equal(output(transformer), base_output)
    trainable = [p for p in transformer.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == sum(v.numel() for v in adapter_state(transformer).values())


def test_a_loaded_adapter_changes_the_output_and_unloading_restores_it(
    adapter: Path, base_output: torch.Tensor
) -> None:
    transformer = load_transformer("nano")
    load_adapters(transformer, [(adapter, 1.0)], base_hash("nano"))
    changed = output(transformer)
    assert (changed - base_output).abs().max() > 1e-3
    load_adapters(transformer, [(adapter, 0.0)], base_hash("nano"))
    torch.testing.assert_close(output(transformer), base_output)
    load_adapters(transformer, [], base_hash("nano"))
    assert torch.equal(output(transformer), base_output)


def test_merged_adapters_are_exchanged_and_taken_out_without_a_trace(
    adapter: Path, tmp_path: Path, base_output: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_adapter(tmp_path / "other", seed=2)
    merged, beside, base = load_transformer("nano"), load_transformer("nano"), base_hash("nano")
    merging = Merging(StoredWeights("nano"))
    for adapters in ([(adapter, 1.0)], [(adapter, 0.5), (other, 2.0)], [(other, 1.0)]):
        assert merging.load(merged, adapters, base) == load_adapters(beside, adapters, base)
        torch.testing.assert_close(output(merged), output(beside), atol=1e-4, rtol=1e-4)
        assert not any("lora" in name for name, _ in merged.named_parameters())
    parents = merging.load(merged, [(adapter, 1.0), (other, 0.5)], base)
    assert [p.scale for p in parents] == [1.0, 0.5]
    assert card(parents).trained_on not in (base, card(parents[::-1]).trained_on)
    merging.load(merged, [(other, 1.0)], base)
    before = output(merged)
    with pytest.raises(AdapterError, match="it has no card"):
        merging.load(merged, [(adapter, 1.0), (tmp_path / "missing", 1.0)], base)
    assert torch.equal(output(merged), before)
    read, calls = StoredWeights.read, []

    def fails(self: StoredWeights, name: str, rows: slice | None = None) -> torch.Tensor:
        calls.append(name)
        if len(calls) == 3:
            raise ModelError("the disk is gone")
        return read(self, name, rows)

    monkeypatch.setattr(StoredWeights, "read", fails)
    with pytest.raises(ModelError, match="the disk is gone"):
        merging.load(merged, [(adapter, 1.0)], base)
    merging.load(merged, [(other, 1.0)], base)  # what was loaded before is put back
    assert torch.equal(output(merged), before)
    merging.load(merged, [], base)
    assert torch.equal(output(merged), base_output)


def test_an_adapter_of_other_shapes_is_refused(tmp_path: Path) -> None:
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets=("self",), seed=0)
    state = {k: v + 0.1 for k, v in adapter_state(transformer).items()}
    name = next(k for k in state if k.endswith("lora_A.weight"))
    state[name] = state[name][:, :-8].contiguous()
    save_adapter(tmp_path, state, transformer.peft_config["default"], card())
    with pytest.raises(AdapterError, match=rf"{name} has shape \(4, 248\), not \(4, 256\)"):
        load_adapters(load_transformer("nano"), [(tmp_path, 1.0)], base_hash("nano"))


def test_peft_loads_the_same_adapter(adapter: Path) -> None:
    ours = load_transformer("nano")
    load_adapters(ours, [(adapter, 1.0)], base_hash("nano"))
    theirs = PeftModel.from_pretrained(load_transformer("nano"), str(adapter))
    torch.testing.assert_close(output(theirs), output(ours))


def test_the_pipeline_loads_the_adapter_and_gives_our_frames(adapter: Path) -> None:
    clip = encoded_clips()[0]
    image = Image.fromarray(clip["frame"])
    generator = Generator("nano")
    base = generator.generate(image, clip["caption"], FRAMES, HEIGHT, WIDTH, SAMPLER).frames
    generator.load_adapters([(adapter, 0.5)])
    ours = generator.generate(image, clip["caption"], FRAMES, HEIGHT, WIDTH, SAMPLER).frames

    pipeline = WanImageToVideoPipeline.from_pretrained(model_folder("nano"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter, adapter_name="a")
    pipeline.set_adapters(["a"], [0.5])
    theirs = pipeline(
        image,
        clip["caption"],
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=SAMPLER.steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(SAMPLER.seed),
        output_type="np",
    ).frames[0]
    difference = np.abs((theirs * 255).round() - ours.astype(np.float32))
    assert difference.max() <= 1  # one grey level: the two round in another order
    assert np.abs(ours.astype(np.float32) - base).mean() > 0.5


def test_an_adapter_with_parents_needs_exactly_these_before_it(adapter: Path, tmp_path: Path) -> None:
    parent = Parent(sha256=json.loads((adapter / "card.json").read_text())["sha256"], scale=1.0)
    child = make_adapter(tmp_path / "child", seed=3, parents=[parent])
    transformer = load_transformer("nano")
    load_adapters(transformer, [(adapter, 1.0), (child, 1.0)], base_hash("nano"))
    for stack in ([(child, 1.0)], [(adapter, 0.7), (child, 1.0)]):
        with pytest.raises(AdapterError, match="was trained on top of"):
            load_adapters(transformer, stack, base_hash("nano"))


def test_an_adapter_of_another_base_is_refused_and_the_loaded_one_stays(
    adapter: Path, base_output: torch.Tensor
) -> None:
    transformer = load_transformer("nano")
    load_adapters(transformer, [(adapter, 1.0)], base_hash("nano"))
    before = output(transformer)
    with pytest.raises(AdapterError, match="was trained on base"):
        load_adapters(transformer, [(adapter, 1.0)], "0" * 64)
    assert torch.equal(output(transformer), before)


def _zero_b(folder: Path) -> None:
    transformer: WanTransformer3DModel = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets="cross_attention", seed=0)
    save_adapter(folder, adapter_state(transformer), transformer.peft_config["default"], card())


def test_damaged_and_empty_adapters_are_refused(adapter: Path, tmp_path: Path) -> None:
    transformer = load_transformer("nano")

    def refused(folder: Path, message: str) -> None:
        with pytest.raises(AdapterError, match=message):
            load_adapters(transformer, [(folder, 1.0)], base_hash("nano"))

    _zero_b(tmp_path / "zero")
    refused(tmp_path / "zero", "changes nothing")
    missing = Path(shutil.copytree(adapter, tmp_path / "missing"))
    (missing / "adapter_config.json").unlink()
    refused(missing, r"adapter_config\.json is missing")
    flipped = Path(shutil.copytree(adapter, tmp_path / "flipped"))
    weights = flipped / "pytorch_lora_weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0xFF
    weights.write_bytes(data)
    refused(flipped, "does not match the sha256")
    refused(tmp_path / "nowhere", r"has no card\.json")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_alpha": 16}, "lora_alpha is 16 in adapter_config.json, but 8 in"),
        ({"use_rslora": True}, "use_rslora is True in adapter_config.json, but False in"),
        ({"alpha_pattern": {"to_q": 2}}, r"alpha_pattern is {'to_q': 2} in adapter_config.json, but {} in"),
        ({"target_modules": ["to_q"]}, r"target_modules is \['to_q'\] in adapter_config.json, but \['add_k_proj'"),
    ],
)
def test_settings_that_differ_from_those_in_the_hashed_file_are_refused(
    changes: dict[str, object], told: str, adapter: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "edited"))
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(settings | changes))
    with pytest.raises(AdapterError, match=told):
        read_card(folder)
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
        read_card(folder)


def test_a_file_without_settings_of_its_own_goes_by_the_configuration(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "plain"))
    save_file(load_file(folder / DIFFUSERS_FILE), folder / DIFFUSERS_FILE, {"format": "pt"})
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(settings | {"lora_alpha": 16}))
    plain = json.loads((folder / "card.json").read_text()) | {"sha256": sha256_file(folder / DIFFUSERS_FILE)}
    (folder / "card.json").write_text(json.dumps(plain))
    transformer = load_transformer("nano")
    load_adapters(transformer, [(folder, 0.5)], base_hash("nano"))
    expected = load_transformer("nano")
    load_adapters(expected, [(adapter, 1.0)], base_hash("nano"))
    torch.testing.assert_close(output(transformer), output(expected))


def test_an_adapter_in_fp32_computes_in_the_dtype_of_its_base() -> None:
    transformer = load_transformer("nano", torch.bfloat16)
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets="cross_attention", seed=0)
    layer = transformer.blocks[0].attn2.to_q
    inputs = torch.randn(2, layer.in_features, dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    layer.lora_B["default"].register_forward_hook(lambda module, args, out: seen.extend((args[0].dtype, out.dtype)))
    layer(inputs)
    assert seen == [torch.bfloat16, torch.bfloat16]
    trained = {p.dtype for p in transformer.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def test_a_regular_expression_does_not_match_the_factors_of_adapters_below(adapter: Path) -> None:
    transformer = load_transformer("nano")
    before = target_modules(WAN21_I2V, transformer, "attn2.to_q")
    load_adapters(transformer, [(adapter, 1.0)], base_hash("nano"))
    assert target_modules(WAN21_I2V, transformer, "attn2.to_q") == before
    assert len(before) == LAYERS


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets="all", seed=0)
    state, config = adapter_state(transformer), transformer.peft_config["default"]
    for i in range(6):
        config.target_modules = sorted(config.target_modules, reverse=bool(i % 2))
        save_adapter(tmp_path / str(i), state, config, card())
    contents = {tuple((p.name, p.read_bytes()) for p in sorted((tmp_path / str(i)).iterdir())) for i in range(6)}
    assert len(contents) == 1


def test_an_adapter_starts_from_its_seed_alone() -> None:
    def first(targets: Targets, dtype: torch.dtype, seed: int = 3) -> torch.Tensor:
        transformer = load_transformer("nano", dtype)
        add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets=targets, seed=seed)
        return adapter_state(transformer)["blocks.1.attn2.to_q.lora_A.weight"]

    one = first("cross_attention", torch.float32)
    assert one.dtype == torch.float32
    assert torch.equal(one, first("all", torch.float32))
    assert torch.equal(one, first("cross_attention", torch.bfloat16))
    assert not torch.equal(one, first("cross_attention", torch.float32, seed=4))
    assert one.abs().max() <= 256**-0.5


def test_an_adapter_on_a_base_that_is_read_later_is_the_same(adapter: Path) -> None:
    weights = StoredWeights("nano")
    streamed, whole = weights.empty_transformer(), load_transformer("nano")
    for transformer in (streamed, whole):
        load_adapters(transformer, [(adapter, 0.5)], base_hash("nano"))
    assert not any(p.is_meta for n, p in streamed.named_parameters() if "lora_" in n)
    weights.fill(streamed, "cpu")
    expected = dict(whole.named_parameters())
    assert dict(streamed.named_parameters()).keys() == expected.keys()
    assert all(torch.equal(p, expected[n]) for n, p in streamed.named_parameters())
