"""Scores and captions by models: text overlay with its packaged weights, tiny random models for the rest."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from cinesynth.data.config import CaptionerSettings, DecodeSettings, PrepareSettings
from cinesynth.data.encode.annotate import Aesthetic, Annotate, Captioner, TextOverlay, annotation_key, unavailable
from cinesynth.data.footage.sources import fingerprint
from cinesynth.data.prepare import plan_footage
from cinesynth.data.stages import to_blocks
from cinesynth.errors import ConfigError, ModelError
from cinesynth.scripted.photographs import load_photograph
from cinesynth.storage import Storage
from tests.data.clips import write_levels
from tests.data.plan.test_windows import config_of, cut


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return cv2.resize(load_photograph("coffee"), (640, 400), interpolation=cv2.INTER_AREA)


@pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="rapidocr is not installed")
def test_text_overlay_is_the_share_of_the_picture_that_is_text(picture: np.ndarray) -> None:
    score = TextOverlay()
    titled = picture.copy()
    for line in range(3):
        cv2.putText(
            titled, "SUBSCRIBE NOW FOR MORE", (30, 120 + 80 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (255, 255, 255), 4
        )
    assert score(picture[None]) < 0.01
    assert 0.1 < score(titled[None]) < 0.6
    assert score(np.stack([picture, titled])) == pytest.approx(score(titled[None]) / 2, abs=0.01)


def _clip_weights(folder: Path) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 20},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, tokenizer).save_pretrained(folder / "clip")
    layers = {
        "layers.0.weight": torch.randn(8, 24),
        "layers.0.bias": torch.randn(8),
        "layers.2.weight": torch.randn(1, 8),
        "layers.2.bias": torch.randn(1),
    }
    save_file(layers, folder / "predictor.safetensors")
    return folder


def test_the_aesthetic_score_is_linear_in_the_normalised_embedding(picture: np.ndarray, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    score = Aesthetic(str(_clip_weights(tmp_path)), "cpu")
    model, processor = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPProcessor.from_pretrained(tmp_path / "clip")
    with torch.no_grad():
        pixels = processor.image_processor(images=[picture], return_tensors="pt").pixel_values
        features = model.visual_projection(model.vision_model(pixels).pooler_output)
    x = torch.nn.functional.normalize(features, dim=-1)
    for weight, bias in score._layers:
        x = x @ weight.T + bias
    assert score(picture[None]) == pytest.approx(float(x), rel=1e-4)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clip/config\.json is missing"):
        Aesthetic(str(tmp_path), "cpu")
    with pytest.raises(ModelError, match=r"captioner\.model: .*cannot be loaded"):
        Captioner(CaptionerSettings(model=str(tmp_path)), "cpu")


def _captioner(folder: Path) -> Path:
    """A LLaVA with random weights and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "</s>", "<image>", "describe", "a", "red", "ball", "rolls", "over", "grass"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<image>"]
    )
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    torch.manual_seed(1)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16),
        text_config=LlamaConfig(**small, num_key_value_heads=4, vocab_size=len(words), eos_token_id=1, pad_token_id=0),
        image_token_index=2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_captioner_describes_what_has_no_caption(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40), size=64)
    captioner = {"model": str(_captioner(tmp_path / "model")), "max_tokens": 6, "prompt": "describe"}
    config = config_of(path, captioner=captioner, shots={"detector": "none"})
    windows, _ = cut(path, config)
    settings: dict[str, Any] = config.model_dump(mode="json", include=set(PrepareSettings.model_fields))
    stage = Annotate(settings, DecodeSettings(), "cpu")
    found = stage(to_blocks(windows[:2])[0]).to_pylist()
    captions = [row["caption"] for row in found]
    assert [row["error"] for row in found] == ["", ""]
    assert all(captions)
    assert captions == [row["caption"] for row in stage(to_blocks(windows[:2])[0]).to_pylist()]
    named = [replace(w, caption="its own") for w in windows[:1]]
    assert stage(to_blocks(named)[0]).to_pylist()[0]["caption"] == ""


@pytest.mark.slow
def test_what_models_find_is_filtered_and_made_once(tmp_path: Path, ray_head: Any) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(2):
        write_levels(clips / f"{number}.mkv", range(number, 2000, 40), size=64)
    (clips / "0.txt").write_text("a caption of its own")
    captioner = {"model": str(_captioner(tmp_path / "model")), "max_tokens": 6, "prompt": "describe"}
    asked = {"captioner": captioner, "detect_text": True, "shots": {"detector": "none"}, "trigger": "LOOK"}
    asked["resources"] = {"models": {"cpus": 0.5}}
    dataset = Storage.open(tmp_path / "dataset")
    windows, rejects = plan_footage(config_of(clips, **asked), dataset)
    assert not [r for r in rejects if r.reason not in ("shot_too_short", "near_duplicate")]
    assert windows
    assert all("text" in w.scores for w in windows)
    for window in windows:
        own = Path(window.source_uri).name == "0.mkv"
        assert (window.caption == "LOOK, a caption of its own") == own
        assert len(window.caption) > len("LOOK, ")
    folder = tmp_path / "dataset" / "annotations"
    parts = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert parts
    again, _ = plan_footage(config_of(clips, **asked), dataset)
    assert again == windows
    assert parts == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    none, rejects = plan_footage(config_of(clips, **asked, filters={"text": {"min": 0.5}}), dataset)
    assert not none
    assert {r.reason for r in rejects} == {"filter_text"}


def test_what_does_not_decode_is_an_error_in_its_row(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))
    config = config_of(path, shots={"detector": "none"})
    windows, _ = cut(path, config)
    path.write_bytes(b"gone")
    settings = config.model_dump(mode="json", include=set(PrepareSettings.model_fields))
    bad = replace(windows[0], stamp=fingerprint(str(path)))
    found: pa.Table = Annotate(settings, DecodeSettings(), "cpu")(to_blocks([bad])[0])
    row = found.to_pylist()[0]
    assert "cannot be decoded" in row["error"]
    assert (row["reason"], row["again"]) == ("undecodable", False)


def test_a_model_that_fails_costs_its_window_one_attempt(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "clip.mkv", range(0, 2000, 40))
    config = config_of(path, shots={"detector": "none"})
    windows, _ = cut(path, config)
    stage = Annotate(config.model_dump(mode="json", include=set(PrepareSettings.model_fields)), DecodeSettings(), "cpu")

    def fail(frames_THWC: np.ndarray) -> float:
        raise RuntimeError("odd picture")

    stage._scores["text"] = fail
    row = stage(to_blocks(windows[:1])[0]).to_pylist()[0]
    assert (row["reason"], row["error"], row["again"]) == ("annotate_failed", "RuntimeError: odd picture", True)

    def full(frames_THWC: np.ndarray) -> float:
        raise OSError("No space left on device")

    stage._scores["text"] = full
    with pytest.raises(OSError, match="No space left"):
        stage(to_blocks(windows[:1])[0])


def test_what_is_asked_for_is_named() -> None:
    plain = PrepareSettings.model_validate({"footage": [{"path": "x"}]})
    asked = PrepareSettings.model_validate({"footage": [{"path": "x"}], "detect_text": True})
    assert annotation_key(plain) == ""
    assert annotation_key(asked) not in ("", annotation_key(asked.model_copy(update={"aesthetic": "w"})))
    assert set(unavailable(plain)) == {"text", "aesthetic"}
    assert set(unavailable(asked)) == {"aesthetic"}
