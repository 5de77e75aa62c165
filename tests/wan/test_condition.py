"""Our conditioning against what `WanImageToVideoPipeline` feeds its transformer for the same inputs."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from cinesynth.generate.denoise import initial_noise
from cinesynth.scripted.series import scripted_clip
from cinesynth.wan.condition import ConditionEncoder
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import model_folder
from cinesynth.wan.inputs import model_input, pad_prompt

PROMPT = "A red ball rolls to the right while the camera pans left. &amp; it stops"
FRAMES, HEIGHT, WIDTH, SEED = 17, 64, 96, 5


class _Captured(Exception):
    pass


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return scripted_clip(3, 1, height=HEIGHT, width=WIDTH).frames[0]


@pytest.fixture(scope="module")
def fed_by_pipeline(frame: np.ndarray) -> dict[str, torch.Tensor]:
    """The arguments of the pipeline's first call of its transformer."""
    pipeline = WanImageToVideoPipeline.from_pretrained(model_folder("nano"), torch_dtype=torch.float32)
    captured: dict[str, torch.Tensor] = {}

    def capture(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        captured.update({k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)})
        raise _Captured

    pipeline.transformer.register_forward_pre_hook(capture, with_kwargs=True)
    with pytest.raises(_Captured):
        pipeline(
            Image.fromarray(frame),
            PROMPT,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(SEED),
        )
    return captured


@pytest.fixture(scope="module")
def encoder() -> ConditionEncoder:
    return ConditionEncoder("nano")


def test_noise_mask_and_condition_channels_equal_the_pipelines(
    fed_by_pipeline: dict[str, torch.Tensor], encoder: ConditionEncoder, frame: np.ndarray
) -> None:
    condition = encoder.condition_latents(frame, FRAMES)[None]
    noise = initial_noise(tuple(condition.shape[1:]), SEED)
    fed = fed_by_pipeline["hidden_states"]
    torch.testing.assert_close(model_input(WAN21_I2V, noise, condition), fed, atol=1e-5, rtol=0)
    # What this test guards against: 4 mask channels after the 16 condition channels instead of before.
    ours = model_input(WAN21_I2V, noise, condition)
    swapped = torch.cat([ours[:, :16], ours[:, 20:], ours[:, 16:20]], dim=1)
    assert not torch.allclose(swapped, fed, atol=1e-2)


def test_image_embeddings_equal_the_pipelines(
    fed_by_pipeline: dict[str, torch.Tensor], encoder: ConditionEncoder, frame: np.ndarray
) -> None:
    embeds = encoder.image_embeds(frame)
    assert embeds.std() > 0.01
    torch.testing.assert_close(embeds[None], fed_by_pipeline["encoder_hidden_states_image"], atol=1e-5, rtol=0)


def test_padded_prompt_equals_the_pipelines(
    fed_by_pipeline: dict[str, torch.Tensor], encoder: ConditionEncoder
) -> None:
    embeds = encoder.prompt_embeds(PROMPT)
    assert 5 < len(embeds) < 100
    padded = pad_prompt(WAN21_I2V, embeds)
    torch.testing.assert_close(padded[None], fed_by_pipeline["encoder_hidden_states"], atol=1e-5, rtol=0)
    assert not padded[len(embeds) :].any()


def test_a_prompt_over_512_tokens_is_cut_as_the_model_does_and_said(
    encoder: ConditionEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="cinesynth.wan"):
        for words in (511, 2000):  # a token each, and one that ends the prompt
            assert encoder.prompt_embeds("ball " * words).shape[0] == 512
    (told,) = [record.getMessage() for record in caplog.records if record.name == "cinesynth.wan"]
    assert told.startswith("a prompt of 2001 tokens is cut to the model's 512: ball ball")


def test_latents_of_footage_have_about_unit_variance(encoder: ConditionEncoder) -> None:
    frames = scripted_clip(3, 2, height=HEIGHT, width=WIDTH).frames[:FRAMES]
    latents = encoder.latents(frames)
    assert latents.shape == (16, 5, 8, 12)
    assert 0.3 < latents.std() < 3
