"""A second family, without image encoder, goes all the way from encoding to a video: nothing but its record is new."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image

from cinesynth.config import LoraSettings, OptimizerSettings, SamplerSettings, TrainSettings, ValidationSettings
from cinesynth.data.check import check_dataset
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import AdapterError, ConfigError, DatasetError, ModelError
from cinesynth.generate.denoise import Conditions
from cinesynth.generate.sampler import Generator
from cinesynth.nano.architecture import TEXT_DIM
from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.loop import TrainLoop
from cinesynth.train.strategy import Replicate, World
from cinesynth.wan.family import FAMILIES, WAN21_I2V, Family, Signature, wan_adapter_targets
from cinesynth.wan.folder import base_hash, model_folder, model_spec
from cinesynth.wan.load import load_transformer
from cinesynth.wan.lora import target_modules
from tests.tiny_dataset import FRAMES, HEIGHT, WIDTH, encoded_dataset, picture

IMAGELESS = replace(
    WAN21_I2V,
    name="imageless",
    title="imageless",
    image_encoder=False,
    adapter_targets=wan_adapter_targets(image_encoder=False),
)
EXPERTS = replace(IMAGELESS, name="experts", title="two-expert", experts=("transformer", "transformer_2"))
"""As Wan2.2-I2V-A14B is made."""


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in (IMAGELESS, EXPERTS):
        signature = Signature("WanTransformer3DModel", 36, image_projections=False, experts=len(family.experts))
        monkeypatch.setitem(FAMILIES, signature, family)


def build(folder: Path, family: Family) -> str:
    """A model of the family: nano's VAE, text encoder and scheduler, and small transformers with random weights."""
    unused = ("image_encoder", "image_processor", "transformer", "sha256.json")
    shutil.copytree(model_folder("nano"), folder, ignore=shutil.ignore_patterns(*unused))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"image_encoder": [None, None], "image_processor": [None, None]}
    for seed, name in enumerate(family.experts):
        torch.manual_seed(seed)
        WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=family.in_channels,
            out_channels=family.latent_channels,
            text_dim=TEXT_DIM,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=16,
        ).save_pretrained(folder / name)
        index[name] = ["diffusers", "WanTransformer3DModel"]
    if len(family.experts) > 1:
        index["boundary_ratio"] = 0.9
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


def test_a_family_without_image_encoder_goes_from_encoding_to_a_video(tmp_path: Path) -> None:
    model = build(tmp_path / "model", IMAGELESS)
    spec = model_spec(model)
    assert (spec.family, spec.image_tokens, spec.positions) == (IMAGELESS, 0, 16)

    location = Storage.open(tmp_path / "dataset")
    dataset = encoded_dataset(location, model)
    assert dataset.family is IMAGELESS
    counts, findings = check_dataset(location)
    assert (counts["windows"], findings) == (2, [])
    clips = dataset.stage(tmp_path / "staged", "train")
    shapes = {name: tuple(clips[0][name].shape) for name in IMAGELESS.tensors}
    wanted = spec.tensor_shapes(FRAMES, HEIGHT, WIDTH)
    assert {name: (None, shape[1]) if name == "prompt_embeds" else shape for name, shape in shapes.items()} == wanted
    assert "image_embeds" not in clips[0]

    settings = TrainSettings(
        lora=LoraSettings(rank=2, targets="attention"),
        optimizer=OptimizerSettings(steps=1, lr=1e-2, batch_size=2),
        validation=ValidationSettings(sigmas=[0.5]),
    )
    loop = TrainLoop(
        settings,
        dataset.family,
        load_transformer(model),
        clips,
        clips,
        dataset.empty_prompt_embeds(),
        Replicate(World()),
        StoredCheckpoints(Storage.open(tmp_path / "checkpoints")),
        lambda first, events: None,
    )
    figures = loop.run()
    assert np.isfinite(figures["loss"])
    adapter = loop.adapter()
    assert any(v.any() for k, v in adapter.items() if "lora_B" in k)
    assert not any("add_k_proj" in k for k in adapter)

    generator = Generator(model)
    image = Image.fromarray(picture(0, 1)[0])
    sampler = SamplerSettings(steps=2, guidance_scale=2.0)
    made = generator.generate(image, "caption 0", FRAMES, HEIGHT, WIDTH, sampler).frames
    assert made.shape == (FRAMES, HEIGHT, WIDTH, 3)
    row = generator.generate_from(Conditions.of_row(clips[0]), SamplerSettings(steps=2, guidance_scale=1)).frames
    assert row.shape == made.shape


def test_each_of_two_experts_denoises_its_own_timesteps_as_in_the_pipeline(tmp_path: Path) -> None:
    model = build(tmp_path / "model", EXPERTS)
    generator = Generator(model)
    calls = dict.fromkeys(generator.experts, 0)
    for name, expert in generator.experts.items():
        expert.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    image = Image.fromarray(picture(1, 1)[0])
    sampler = SamplerSettings(steps=4, guidance_scale=3.0, seed=7)
    ours = generator.generate(image, "a ball", FRAMES, HEIGHT, WIDTH, sampler).frames
    assert all(calls.values())
    assert sum(calls.values()) == 2 * sampler.steps
    pipeline = WanImageToVideoPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    shape = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    theirs = pipeline(
        image, "a ball", negative_prompt="", **shape, num_inference_steps=4, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs((theirs * 255).round() - ours).max() <= 1

    one, both = base_hash(build(tmp_path / "one", IMAGELESS)), base_hash(model)
    assert one != both
    with pytest.raises(AdapterError, match="two experts"):
        generator.load_adapters([(tmp_path, 1.0)])
    shutil.rmtree(Path(model) / "transformer_2")
    with pytest.raises(ModelError, match="'transformer_2' is missing"):
        model_folder(model)


def test_the_transformer_has_what_its_family_puts_adapters_on() -> None:
    transformer = load_transformer("nano")
    assert any("add_k_proj" in name for name in target_modules(WAN21_I2V, transformer, "cross_attention"))
    assert not any("add_k_proj" in name for name in target_modules(IMAGELESS, transformer, "all"))
    foreign = replace(WAN21_I2V, adapter_targets={"cross": ("attn3.to_q",)})
    with pytest.raises(ModelError, match=r"no layer 'attn3\.to_q'"):
        target_modules(foreign, transformer, "all")
    with pytest.raises(ModelError, match="imageless models have no layers of the group 'image'"):
        target_modules(IMAGELESS, transformer, ("image",))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((33, 1040, 96), "33 frames of 96x1040 are more than .* at most 253 frames of 1024x1024"),
        ((257, 64, 96), "257 frames of 96x64 are more than"),
        ((32, 64, 96), "32 frames: .* makes 4n.1 frames"),
        ((33, 64, 100), "100x64: .* multiples of 16"),
    ],
)
def test_a_video_that_the_model_cannot_make_is_refused(shape: tuple[int, int, int], message: str) -> None:
    spec = model_spec("nano")
    spec.check_size(253, 1024, 1024, "size")
    with pytest.raises(ConfigError, match=f"size: {message}"):
        spec.check_size(*shape, "size")


def test_conditions_of_another_models_encoders_are_refused() -> None:
    generator = object.__new__(Generator)  # refused before anything is loaded
    generator.spec = model_spec("nano")
    latents = torch.zeros(16, 2, 4, 6)
    with pytest.raises(ModelError, match=r"image_embeds has shape \(\)"):
        generator.generate_from(Conditions(latents, torch.zeros(3, TEXT_DIM)), SamplerSettings())
    wide = Conditions(latents, torch.zeros(3, 4096), torch.zeros(17, 64))
    with pytest.raises(ModelError, match=r"prompt_embeds has shape \(3, 4096\)"):
        generator.generate_from(wide, SamplerSettings())


def test_a_dataset_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    location = Storage.open(tmp_path)
    location.write_json("manifest.json", {"schema": 2, "content_sha256": "c" * 64, "family": "wan9"})
    with pytest.raises(DatasetError, match="model family 'wan9' is not known"):
        ClipsDataset.open(location)
