"""Generation: reproducible by seed, equal to the pipeline, cancellable, with provenance in the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from cinesynth.config import SamplerSettings
from cinesynth.data.video import read_metadata, read_video, write_video
from cinesynth.generate.course import Course
from cinesynth.generate.denoise import decode
from cinesynth.generate.held_out import window_seed
from cinesynth.generate.sampler import Generator
from cinesynth.wan.folder import model_folder, model_hash
from tests.nano_clips import FRAMES, HEIGHT, WIDTH, encoded_clips

PROMPT = "a blue square slides to the left"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator("nano")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(encoded_clips()[0]["frame"])


def make(generator: Generator, image: Image.Image, seed: int = 3, guidance: float = 1.0) -> np.ndarray:
    sampler = SamplerSettings(steps=2, guidance_scale=guidance, seed=seed)
    return generator.generate(image, PROMPT, FRAMES, HEIGHT, WIDTH, sampler).frames


def test_a_seed_gives_the_same_frames_and_another_seed_others(generator: Generator, image: Image.Image) -> None:
    first = make(generator, image)
    assert first.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(first, make(generator, image))
    assert not np.array_equal(first, make(generator, image, seed=4))


def test_guided_frames_equal_the_pipelines(generator: Generator, image: Image.Image) -> None:
    pipeline = WanImageToVideoPipeline.from_pretrained(model_folder("nano"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image,
        PROMPT,
        negative_prompt="",
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).frames[0]
    ours = make(generator, image, guidance=4.0)
    assert np.abs((theirs * 255).round() - ours).max() <= 1
    assert not np.array_equal(ours, make(generator, image, guidance=1.0))


def test_an_exception_in_on_step_cancels_between_steps(generator: Generator, image: Image.Image) -> None:
    class Cancelled(Exception):
        pass

    seen = []

    def on_step(step: int, total: int) -> None:
        seen.append((step, total))
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        generator.generate(
            image, PROMPT, FRAMES, HEIGHT, WIDTH, SamplerSettings(steps=5, guidance_scale=1), Course(on_step=on_step)
        )
    assert seen == [(1, 5), (2, 5)]


def test_the_written_file_tells_what_made_it(generator: Generator, image: Image.Image, tmp_path: Path) -> None:
    sampler = SamplerSettings(steps=2, guidance_scale=1.0, seed=9)
    video = generator.generate(image, PROMPT, FRAMES, HEIGHT, WIDTH, sampler)
    path = write_video(tmp_path / "v.mp4", video.frames, generator.fps, "h264", video.provenance)
    frames, fps = read_video(path)
    assert (frames.shape, fps) == (video.frames.shape, 16)
    stored = read_metadata(path)
    assert stored["prompt"] == PROMPT
    assert stored["model_sha256"] == model_hash("nano")
    assert stored["sampler"]["seed"] == 9
    lossless, _ = read_video(write_video(tmp_path / "v.mkv", video.frames, 16, "ffv1"))
    assert np.array_equal(lossless, video.frames)


def test_a_windows_seed_depends_on_the_window_and_the_runs_seed() -> None:
    assert window_seed(0, "a") == window_seed(0, "a")
    assert len({window_seed(0, "a"), window_seed(0, "b"), window_seed(1, "a")}) == 3


def test_a_still_is_denoised_from_sigma_and_goes_farther_the_higher_it_is(
    generator: Generator, image: Image.Image
) -> None:
    reference = np.asarray(image).astype(float)
    sampler = SamplerSettings(steps=8, guidance_scale=1.0, seed=3)

    def distance(sigma: float | None) -> float:
        frames = generator.generate(image, PROMPT, 5, HEIGHT, WIDTH, sampler, start_sigma=sigma).frames
        return float(np.abs(frames[-1] - reference).mean())

    coded = generator.encoder.latents(np.repeat(np.asarray(image)[None], 5, axis=0))[None]
    through_the_vae = np.abs(decode(generator.spec, generator.vae, coded)[-1] - reference).mean()
    assert distance(1e-3) == pytest.approx(through_the_vae)
    low, middle, high = (distance(sigma) for sigma in (0.5, 0.85, 0.98))
    assert through_the_vae < low < middle < high
    assert distance(None) > middle


@pytest.mark.slow
@pytest.mark.beside
def test_a_720p_video_is_made_with_a_longer_table_of_positions(image: Image.Image, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder("nano"), model)
    config = model / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_max_seq_len": 128}))
    sampler = SamplerSettings(steps=1, guidance_scale=1.0, seed=1)
    video = Generator(str(model)).generate(image, PROMPT, 5, 720, 1280, sampler)
    assert video.frames.shape == (5, 720, 1280, 3)
    assert video.frames.std() > 5


def test_adapters_that_are_loaded_are_not_loaded_again(
    generator: Generator, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cinesynth.generate import sampler as module

    monkeypatch.setattr(module, "load_adapters", lambda *args: pytest.fail("loaded again"))
    generator.load_adapters([])
    assert make(generator, image).shape == (FRAMES, HEIGHT, WIDTH, 3)
