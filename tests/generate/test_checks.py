"""What a generation refuses before Ray starts: images, sizes, adapters and datasets that cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinesynth.config import GenerateConfig, KeyframeSettings
from cinesynth.errors import AdapterError, ConfigError, DatasetError, MediaError, WeightsUnavailable
from cinesynth.generate import keyframes
from cinesynth.generate.driver import check_generation
from cinesynth.generate.outline import outline_generation
from cinesynth.locate import locate_dataset
from cinesynth.metrics.networks.clip import Clip
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_file
from cinesynth.wan.card import DIFFUSERS_FILE, PEFT_FILE, AdapterCard
from cinesynth.wan.folder import base_hash
from tests.small_clip import small_clip


def config(storage: Path, image: Path, **changes: Any) -> GenerateConfig:
    shot = {"image": str(image), "prompt": "p", "height": 64, "width": 96, **changes.pop("shot", {})}
    return parse_config(GenerateConfig, {"name": "g", "storage": str(storage), "shots": [shot], **changes})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "first.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(path)
    return path


def test_an_image_that_cannot_be_read_is_named(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(MediaError, match=r"^shots\.0\.image: .*first\.jpg is a damaged picture"):
        check_generation(config(image.parent, image))


def test_a_size_beyond_the_position_table_is_refused_with_the_largest(tmp_path: Path, image: Path) -> None:
    with pytest.raises(ConfigError, match=r"shots\.0: 33 frames of 1040x64 .* at most 253 frames of 1024x1024"):
        check_generation(config(tmp_path, image, shot={"width": 1040}))
    with pytest.raises(ConfigError, match="257 frames of 96x64"):
        check_generation(config(tmp_path, image, shot={"num_frames": 257}))
    check_generation(config(tmp_path, image, shot={"num_frames": 253, "width": 1024}))


def test_a_negative_prompt_without_guidance_is_said(
    tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="cinesynth.generate"):
        for sampler in ({"guidance_scale": 1.5, "negative_prompt": "blurred"}, {"guidance_scale": 1.0}):
            check_generation(config(tmp_path, image, sampler={"negative_prompt": "", **sampler}))
        assert not caplog.messages
        check_generation(config(tmp_path, image, sampler={"guidance_scale": 1.0, "negative_prompt": "blurred"}))
    (told,) = caplog.messages
    assert told.startswith("sampler.negative_prompt is not used: with guidance_scale 1 there is no guidance")


def adapter(folder: Path, base: str) -> Path:
    """An adapter's folder as far as it is looked into before a model is loaded."""
    folder.mkdir()
    for name in (DIFFUSERS_FILE, PEFT_FILE, "adapter_config.json"):
        (folder / name).write_bytes(b"weights")
    sha256 = sha256_file(folder / DIFFUSERS_FILE)
    card = AdapterCard(
        **{"base_model": "other", "base_sha256": base, "stage": "style", "dataset": "d", "dataset_sha256": "dd"},
        **{"config": {}, "step": 1, "sha256": sha256},  # type: ignore[arg-type]
    )
    (folder / "card.json").write_text(card.model_dump_json())
    return folder


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, image: Path) -> None:
    ours, other = adapter(tmp_path / "ours", base_hash("nano")), adapter(tmp_path / "other", "ff" * 32)
    arms, _, inputs = check_generation(config(tmp_path, image, adapters=[{"ref": str(ours), "scale": 0.5}]))
    sha256 = sha256_file(ours / DIFFUSERS_FILE)
    assert arms == {"adapter": [(str(ours), ours, 0.5, sha256)]}
    assert inputs["adapter_0"] == sha256
    with pytest.raises(AdapterError, match="was trained on base other"):
        check_generation(config(tmp_path, image, adapters=[{"ref": str(ours)}, {"ref": str(other)}]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test", "adapters": [{"ref": "a"}], "arms": {"a": []}}, "give either arms .* or adapters, not both"),
        ({"shots": [{"image": "i", "prompt": "p"}], "arms": {"a": []}}, "give either arms .* or shots, not both"),
        ({"split": "test", "arms": {"real": []}}, "arms holds 'real', which names the videos of the dataset"),
    ],
)
def test_arms_that_cannot_be_made_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(GenerateConfig, {"name": "g", "dataset": "d", **changes})


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(tmp_path: Path, image: Path) -> None:
    ours = adapter(tmp_path / "ours", base_hash("nano"))
    changes = {"adapters": [{"ref": str(ours), "scale": 0.5}], "workers": 2, "sampler": {"steps": 3}}
    told = outline_generation(config(tmp_path / "s", image, **changes)).text()
    assert told.startswith("generate g: new\n  inputs\n    model      nano (")
    assert f"adapter 0  {ours} x 0.5 ({sha256_file(ours / DIFFUSERS_FILE)[:12]})" in told
    assert "videos     1: 33 frames of 96x64" in told
    assert "sampling   3 steps, 6 passes of the transformer in all" in told
    assert "workers    2 of 1 CPUs each" in told
    assert not (tmp_path / "s").exists()


def test_a_typo_in_a_dataset_name_is_answered_with_the_names_there_are(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "noir-clips").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no dataset 'noir-clip' in .*; did you mean 'noir-clips'\?"):
        locate_dataset(Storage.open(tmp_path), "noir-clip")


def test_a_long_shot_fits_segment_by_segment(tmp_path: Path, image: Path) -> None:
    long: dict[str, Any] = {"num_frames": 401, "keyframe": {"candidates": 3}}
    with pytest.raises(ConfigError, match="401 frames of 96x64"):
        check_generation(config(tmp_path, image, shot=long))
    given = config(tmp_path, image, shot=long, expansion={"segment_frames": 81, "overlap": 4})
    told = outline_generation(given).text()
    assert "segments   6, each of at most 81 frames" in told
    assert "keyframes  1, of 3 candidates" in told
    with pytest.raises(ConfigError, match=r"ranks = 3: the model's 4 attention heads do not divide"):
        check_generation(config(tmp_path, image, ranks=3))


def test_clip_weights_of_a_keyframe_are_read_before_anything_starts(tmp_path: Path, image: Path) -> None:
    weights = small_clip(tmp_path)
    keyframe = {"candidates": 2, "clip": {"model": "small", "weights": str(weights)}}
    _, _, inputs = check_generation(config(tmp_path, image, shot={"keyframe": keyframe}))
    assert inputs["clip_0"] == sha256_file(weights)
    called, distance = keyframes._measure(parse_config(KeyframeSettings, keyframe))
    picture = np.asarray(Image.open(image))
    assert called == "clip"
    assert distance(picture, picture) < 1e-5 < distance(picture, 255 - picture)
    weights.write_bytes(b"damaged")
    Clip.load.cache_clear()
    with pytest.raises(WeightsUnavailable, match=r"shots\.0\.keyframe\.clip\.weights .* does not hold"):
        check_generation(config(tmp_path, image, shot={"keyframe": keyframe}))
